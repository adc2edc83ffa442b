import dev.tercet.*
import java.io.File
import java.lang.management.ManagementFactory

/**
 * What a call from Kotlin costs beside the work itself. usage: BenchKt FIXTURES
 *
 * Thread CPU time, median of rounds: other programs on the machine do not count.
 */
private val threads = ManagementFactory.getThreadMXBean()

private fun microseconds(rounds: Int = 21, calls: Int = 2000, call: () -> Unit): Double {
    repeat(20_000) { call() } // until the compiler is done with it
    return List(rounds) {
        val start = threads.currentThreadCpuTime
        repeat(calls) { call() }
        (threads.currentThreadCpuTime - start) / 1000.0 / calls
    }.sorted()[rounds / 2]
}

fun main(arguments: Array<String>) {
    Tercet.openBlocking(File(arguments[0], "shop.tercet").path).use { tercet ->
        val b = tercet.blocking
        listOf("item-3", "item-11", "item-20").forEach { b.record(it, "view") }
        for (k in listOf(1, 10, 20)) {
            val query = Query(k)
            check(b.recommend(query).size == k)
            println("recommend, k = $k: %.1f us".format(microseconds { b.recommend(query) }))
        }
        val full = Query(10, filter = "category not in (adult) and price <= 12.5", diversity = 0.3f, explain = true)
        check(b.recommend(full).size == 10)
        println("recommend, k = 10, filter, diversity, explained: %.1f us".format(microseconds { b.recommend(full) }))
        println("similar, k = 10: %.1f us".format(microseconds { b.similar("item-1", 10) }))
        println("record: %.1f us".format(microseconds { b.record("item-1", "view") }))
        println("user vector: %.1f us".format(microseconds { b.userVector() }))
    }
}
