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

    /** How diversity keeps items apart. */
    public fun method(method: DiversityMethod): QueryBuilder = apply { query = query.copy(method = method) }

    /** How many of the best items diversity and exploration choose from. */
    public fun pool(pool: Int): QueryBuilder = apply { query = query.copy(pool = pool) }

    /** At most [items] per value of an attribute. */
    public fun cap(attribute: String, items: Int): QueryBuilder =
        apply { query = query.copy(caps = query.caps + Cap(attribute, items)) }

    /** A value gets its share of the history plus [slack], times k, rounded up. */
    public fun calibrate(attribute: String, slack: Float): QueryBuilder =
        apply { query = query.copy(calibrations = query.calibrations + Calibration(attribute, slack)) }

    /** What the most popular item gains over the least popular one, in standard deviations of the scores. */
    public fun popularity(weight: Float): QueryBuilder = apply { query = query.copy(popularity = weight) }

    /** What new items gain, in standard deviations of the scores, halved per half-life of age. */
    public fun freshness(attribute: String, now: Double, halfLife: Double, weight: Float): QueryBuilder =
        apply { query = query.copy(freshness = query.freshness + Freshness(attribute, now, halfLife, weight)) }

    /** Temperature and seed of exploration. */
    public fun explore(temperature: Float, seed: Long): QueryBuilder =
        apply { query = query.copy(explore = temperature, seed = seed) }

    /** How many partitions of the table to look at. */
    public fun probes(probes: Int): QueryBuilder = apply { query = query.copy(probes = probes) }

    /** Items to leave out. */
    public fun exclude(exclude: List<String>): QueryBuilder = apply { query = query.copy(exclude = exclude) }

    /** Whether items of the history may come again. */
    public fun includeSeen(yes: Boolean): QueryBuilder = apply { query = query.copy(includeSeen = yes) }

    /** Whether to say which items of the history are closest to each result. */
    public fun explain(yes: Boolean): QueryBuilder = apply { query = query.copy(explain = yes) }

    /** The query. */
    public fun build(): Query = query
}

/** [NewItem] for Java: `new NewItemBuilder("sku-9").feature("text", values).build()`. */
public class NewItemBuilder(item: String) {
    private var item = NewItem(item, emptyList())

    /** The feature of a modality. */
    public fun feature(modality: String, values: FloatArray): NewItemBuilder =
        apply { item = item.copy(features = item.features + Feature(modality, values.asList())) }

    /** The values of an attribute. */
    public fun attribute(attribute: String, vararg values: String): NewItemBuilder =
        apply { item = item.copy(attributes = item.attributes + AttributeValues(attribute, values.asList())) }

    /** The item. */
    public fun build(): NewItem = item
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
