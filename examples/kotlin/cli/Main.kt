package dev.tercet.example

import dev.tercet.Event
import dev.tercet.Query
import dev.tercet.Tercet
import dev.tercet.TercetException
import java.io.File
import kotlin.system.exitProcess
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.yield

/**
 * A shop in a terminal. usage: MainKt BUNDLE [ITEM...]
 *
 * Shows what the bundle recommends, and again after each item given (or after two of its first
 * recommendations, if none is).
 */
fun main(arguments: Array<String>) {
    if (arguments.isEmpty()) {
        System.err.println("usage: MainKt BUNDLE [ITEM...]")
        exitProcess(2)
    }
    try {
        runBlocking { visit(arguments[0], arguments.drop(1)) }
    } catch (e: TercetException.NotFound) {
        System.err.println("no bundle at ${arguments[0]}; make one with: tercet demo --out FOLDER")
        exitProcess(1)
    } catch (e: TercetException) {
        System.err.println(e.message)
        exitProcess(1)
    }
}

private suspend fun visit(path: String, items: List<String>) = runBlocking {
    Tercet.open(path).use { tercet ->
        val info = tercet.info()
        println("${info.bundleId} version ${info.bundleVersion}: ${info.items} items")

        // As a view model would: shown whenever the history has changed.
        val query = Query(k = 3, diversity = 0.2f, explain = true)
        val screen = launch {
            tercet.recommendations(query).collect { best ->
                println(best.joinToString("\n") { r ->
                    val why = r.because.firstOrNull()?.let { " because of ${it.item}" } ?: ""
                    "  %-12s %7.4f%s".format(r.item, r.score, why)
                })
            }
        }
        yield()
        for (item in items.ifEmpty { tercet.recommend(2).map { it.item } }) {
            if (tercet.record(item, timestamp = System.currentTimeMillis() / 1000)) {
                println("visited $item")
            } else {
                println("visited $item, which this bundle does not have")
            }
            kotlinx.coroutines.delay(50)
        }
        screen.cancel()

        // Kept for the next start; forgotten when the user asks for it.
        val snapshot = File.createTempFile("tercet", ".history").path
        tercet.save(snapshot)
        tercet.restore(snapshot)
        println("kept ${tercet.history().map(Event::item)}")
        tercet.erase(snapshot)
        check(tercet.history().isEmpty() && !File(snapshot).exists())
        println("forgotten")
    }
}
