package dev.tercet

/**
 * [Query] for Java, which has no named arguments:
 * `new QueryBuilder(10).filter("price <= 20").diversity(0.3f).build()`.
 */
public class QueryBuilder(k: Int) {
    private var query = Query(k)

    /** Which items qualify, as `category not in (adult) and price <= 20`. */
    public fun filter(filter: String?): QueryBuilder = apply { query = query.copy(filter = filter) }

    /** How much to avoid items that are alike, 0 to 1. */
    public fun diversity(diversity: Float): QueryBuilder = apply { query = query.copy(diversity = diversity) }

    /** How many of the best items diversity chooses from. */
    public fun pool(pool: Int): QueryBuilder = apply { query = query.copy(pool = pool) }

    /** Items to leave out. */
    public fun exclude(exclude: List<String>): QueryBuilder = apply { query = query.copy(exclude = exclude) }

    /** Whether items of the history may come again. */
    public fun includeSeen(yes: Boolean): QueryBuilder = apply { query = query.copy(includeSeen = yes) }

    /** Whether to say which items of the history are closest to each result. */
    public fun explain(yes: Boolean): QueryBuilder = apply { query = query.copy(explain = yes) }

    /** The query. */
    public fun build(): Query = query
}

/** [Options] for Java: `new OptionsBuilder().verify(true).build()`. */
public class OptionsBuilder {
    private var options = Options()

    /** Copy the item table to memory instead of mapping it. */
    public fun copy(yes: Boolean): OptionsBuilder = apply { options = options.copy(copy = yes) }

    /** Hash every file and check every row first. */
    public fun verify(yes: Boolean): OptionsBuilder = apply { options = options.copy(verify = yes) }

    /** Most events kept, 1 to 4096. */
    public fun maxHistory(events: Int): OptionsBuilder = apply { options = options.copy(maxHistory = events) }

    /** The options. */
    public fun build(): Options = options
}
