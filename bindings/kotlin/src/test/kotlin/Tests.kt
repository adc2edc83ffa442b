import dev.tercet.*
import java.io.File
import java.nio.file.Files
import kotlin.concurrent.thread
import kotlin.system.exitProcess
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** usage: TestsKt SCENARIO FIXTURES SCRATCH [CYCLES] */
private var passed = 0
private var failed = 0

private fun check(name: String, condition: Boolean) {
    if (condition) passed++ else {
        failed++
        System.err.println("FAILED $name")
    }
}

/** The case of the error that `call` throws, with a reason a developer can use. */
private fun caseOf(call: () -> Unit): String =
    try {
        call()
        "none"
    } catch (e: TercetException) {
        check("a reason: $e", e.reasonText().isNotEmpty() && e.message!!.contains(e.reasonText()))
        e.javaClass.simpleName
    }

private fun TercetException.reasonText(): String = when (this) {
    is TercetException.Closed -> reason
    is TercetException.InvalidArgument -> reason
    is TercetException.UnknownItem -> reason
    is TercetException.NotFound -> reason
    is TercetException.IncompatibleBundle -> reason
    is TercetException.CorruptBundle -> reason
    is TercetException.CorruptSnapshot -> reason
    is TercetException.Unsupported -> reason
    is TercetException.Listener -> reason
    is TercetException.Io -> reason
    is TercetException.Internal -> reason
    is TercetException.Busy -> reason
}

// -- the scenario -------------------------------------------------------------------------------

private fun bits(x: Float) = "%08x".format(x.toRawBits())

private fun lines(best: List<Recommendation>) =
    best.map { r ->
        val because = r.because.flatMap { listOf(it.item, bits(it.share), bits(it.contribution)) }
        val modalities = r.modalities.flatMap { listOf("~" + it.name, bits(it.share)) }
        (listOf(r.item, bits(r.score)) + because + modalities).joinToString("\t")
    }

private class Scenario(private val fixtures: File, private val scratch: File) {
    private lateinit var tercet: Tercet
    private var heard = 0

    private fun path(name: String) = (if (name.startsWith("$")) File(scratch, name.drop(1)) else File(fixtures, name)).path
    private fun given(word: String) = word.takeIf { it != "-" }

    private fun run(words: List<String>): List<String> {
        when (words[0]) {
            "open" -> {
                var options = Options()
                for (flag in words.drop(2)) options = when (flag) {
                    "copy" -> options.copy(copy = true)
                    "verify" -> options.copy(verify = true)
                    "adapt" -> options.copy(adapt = true)
                    else -> options.copy(maxHistory = flag.substringAfter('=').toInt())
                }
                tercet = Tercet.openBlocking(path(words[1]), options)
            }
            "close" -> tercet.close()
            "info" -> {
                val i = tercet.blocking.info()
                return listOf(
                    listOf(i.bundleId, i.bundleVersion, i.items, i.dim, i.window).joinToString("\t"),
                    i.behaviors.joinToString("\t"),
                    i.attributes.joinToString("\t"),
                )
            }
            "record" -> {
                val known = tercet.blocking.record(words[1], given(words[2]), given(words[3])?.toLong())
                return listOf("${if (known) "known" else "unknown"}\theard\t$heard")
            }
            "history" -> return tercet.blocking.history().map { it.item }
            "add" -> {
                var item = NewItemBuilder(words[1])
                for (part in words.drop(2)) {
                    val name = part.substringBefore('=')
                    val values = part.substringAfter('=').split(',')
                    item = if (name.startsWith("@")) {
                        item.attribute(name.drop(1), *values.toTypedArray())
                    } else {
                        item.feature(name, FloatArray(values.size) { values[it].toFloat() })
                    }
                }
                val outcome = when (tercet.blocking.addItem(item.build())) {
                    Added.RANKED -> "ranked"
                    Added.REPLACED -> "replaced"
                    Added.IN_BUNDLE -> "in the bundle"
                }
                return listOf("$outcome\theard\t$heard")
            }
            "feedback" -> {
                if (words[1] == "forget") {
                    tercet.blocking.forgetFeedback()
                    return listOf("forgotten\theard\t$heard")
                }
                val feedback = Feedback.valueOf(words[2].uppercase())
                val known = tercet.blocking.feedback(words[1], feedback)
                return listOf("${if (known) "known" else "unknown"}\theard\t$heard")
            }
            "remove" -> {
                val there = runBlocking { tercet.removeItem(words[1]) }
                return listOf("${if (there) "removed" else "not there"}\theard\t$heard")
            }
            "added" -> return tercet.blocking.addedItems().map { "${it.item}\t${if (it.ranked) "ranked" else "kept"}" }
            "recommend" -> {
                var query = Query(k = 0)
                for (setting in words.drop(1)) {
                    val value = setting.substringAfter('=')
                    val parts = value.split(':')
                    query = when (setting.substringBefore('=')) {
                        "k" -> query.copy(k = value.toInt())
                        "filter" -> query.copy(filter = value)
                        "diversity" -> query.copy(diversity = value.toFloat())
                        "pool" -> query.copy(pool = value.toInt())
                        "exclude" -> query.copy(exclude = value.split(','))
                        "dpp" -> query.copy(method = DiversityMethod.DPP)
                        "cap" -> query.copy(caps = query.caps + Cap(parts[0], parts[1].toInt()))
                        "calibrate" ->
                            query.copy(calibrations = query.calibrations + Calibration(parts[0], parts[1].toFloat()))
                        "popularity" -> query.copy(popularity = value.toFloat())
                        "freshness" -> query.copy(
                            freshness = listOf(
                                Freshness(parts[0], parts[1].toDouble(), parts[2].toDouble(), parts[3].toFloat()),
                            ),
                        )
                        "explore" -> query.copy(explore = value.toFloat())
                        "seed" -> query.copy(seed = value.toLong())
                        "probes" -> query.copy(probes = value.toInt())
                        "include_seen" -> query.copy(includeSeen = true)
                        "explain" -> query.copy(explain = true)
                        else -> error(setting)
                    }
                }
                // Alternately both forms: they must agree with the file, so with each other.
                return lines(if (query.k % 2 == 0) tercet.blocking.recommend(query) else runBlocking { tercet.recommend(query) })
            }
            "rank" -> {
                val ranking = tercet.blocking.rank(words.drop(1))
                return lines(ranking.ranked) + ranking.unknown.map { "unknown\t$it" }
            }
            "similar" -> return lines(tercet.blocking.similar(words[1], words[2].toInt()))
            "vector" -> return listOf(tercet.blocking.userVector().joinToString("\t") { bits(it) })
            "probe" -> return listOf(tercet.blocking.probe()?.let { "${it.found}\t${it.expected}\t${if (it.passed) "passed" else "failed"}" } ?: "none")
            "verify" -> {
                tercet.blocking.verify()
                return listOf("fine")
            }
            "save" -> tercet.blocking.save(path(words[1]))
            "restore" -> tercet.blocking.restore(path(words[1]))
            "keep" -> {
                val key = when (words[2]) {
                    "-" -> null
                    "short" -> "short".toByteArray()
                    else -> ByteArray(32) { words[2].toByte() }
                }
                tercet.blocking.keepIn(path(words[1]), key)
                return tercet.blocking.history().map { it.item }.ifEmpty { listOf("empty") }
            }
            "export" -> {
                val text = tercet.blocking.exportUserData()
                val items = Regex("\"item\": \"([^\"]*)\"").findAll(text).map { it.groupValues[1] }.toList()
                val behavior = Regex("\"behavior\": \"([^\"]*)\"").find(text)!!.groupValues[1]
                return listOf("${items.size}\t${items[0]}\t$behavior")
            }
            "erase" -> {
                val file = given(words[1])?.let { path(it) }
                tercet.blocking.erase(file)
                return listOf("${if (file != null && File(file).exists()) "there" else "gone"}\theard\t$heard")
            }
            "listener" -> {
                heard = 0
                tercet.setListener(
                    when (words[1]) {
                        "count" -> object : HistoryListener {
                            override fun historyChanged(revision: Long) {
                                heard++
                            }
                        }
                        "fail" -> object : HistoryListener {
                            override fun historyChanged(revision: Long): Unit = throw RuntimeException("no database")
                        }
                        else -> null
                    },
                )
            }
            else -> error(words[0])
        }
        return emptyList()
    }

    fun play(file: File) {
        var number = 0
        var step: Pair<Int, List<String>>? = null
        val expected = mutableListOf<String>()
        fun compare() {
            val (line, words) = step ?: return
            val got = try {
                run(words).map { "=\t$it" }
            } catch (e: TercetException) {
                listOf("=!\t${e.javaClass.simpleName}")
            }
            check("line $line: expected $expected, got $got", expected == got)
            expected.clear()
        }
        for (text in file.readLines()) {
            number++
            when {
                text.startsWith("=") -> expected += text
                text.isEmpty() || text.startsWith("#") -> {}
                else -> {
                    compare()
                    step = number to text.split('\t')
                }
            }
        }
        compare()
    }
}

// -- bad input ----------------------------------------------------------------------------------

private fun badInput(shop: String) {
    val tercet = Tercet.openBlocking(shop)
    check("huge k", tercet.blocking.recommend(Int.MAX_VALUE).size == 60)
    check("negative k", caseOf { tercet.blocking.recommend(-1) } == "InvalidArgument")
    check("NaN", caseOf { tercet.blocking.recommend(Query(3, diversity = Float.NaN)) } == "InvalidArgument")
    check("half a surrogate pair", caseOf { tercet.blocking.record("item-\uD800") } == "InvalidArgument")
    check("overlong key", caseOf { tercet.blocking.record("x".repeat(2000)) } == "InvalidArgument")
    check("not the history in the text", try {
        tercet.blocking.record("item-1", "sold-my-soul"); false
    } catch (e: TercetException.InvalidArgument) {
        "item-1" !in e.reason && "sold-my-soul" in e.reason
    })

    // A listener that throws its own error, one that throws ours, one that calls back.
    tercet.setListener(object : HistoryListener {
        override fun historyChanged(revision: Long): Unit = throw IllegalArgumentException("disk full")
    })
    try {
        tercet.blocking.record("item-1")
        check("a throwing listener", false)
    } catch (e: TercetException.Listener) {
        check("the listener's text: ${e.reason}", "disk full" in e.reason)
    }
    check("the change stands", tercet.blocking.history().map { it.item } == listOf("item-1"))
    tercet.setListener(object : HistoryListener {
        override fun historyChanged(revision: Long): Unit = throw TercetException.Io("our own")
    })
    check("our own error", caseOf { tercet.blocking.record("item-2") } == "Listener")
    var asked = 0
    tercet.setListener(object : HistoryListener {
        override fun historyChanged(revision: Long) {
            asked += tercet.blocking.recommend(2).size
        }
    })
    tercet.blocking.record("item-3")
    check("a listener may call", asked == 2)
    tercet.setListener(null)

    val other = tercet.newSession()
    tercet.close()
    tercet.close()
    check("closed", caseOf { tercet.blocking.recommend(3) } == "Closed")
    check("closed: info", caseOf { tercet.blocking.info() } == "Closed")
    check("closed: session", caseOf { tercet.newSession() } == "Closed")
    check("closed: listener", caseOf { tercet.setListener(null) } == "Closed")
    check("the other goes on", other.blocking.recommend(3).size == 3)
    other.use { }
    check("use closes", caseOf { other.blocking.recommend(3) } == "Closed")
}

private fun fourThreads(shop: String) {
    val shared = Tercet.openBlocking(shop)
    val wrong = java.util.concurrent.atomic.AtomicInteger()
    (0 until 4).map { number ->
        thread {
            try {
                shared.newSession().use { own ->
                    repeat(100) { i ->
                        own.blocking.record("item-${(i * 7 + number) % 60}")
                        shared.blocking.record("item-${(i * 3 + number) % 60}", "buy")
                        if (own.blocking.recommend(5).size > 5) wrong.incrementAndGet()
                        shared.blocking.recommend(5)
                    }
                }
            } catch (e: Throwable) {
                e.printStackTrace()
                wrong.incrementAndGet()
            }
        }
    }.forEach { it.join() }
    check("four threads", wrong.get() == 0 && shared.blocking.history().size == 400)

    // Four read until one closes: they get Closed, nothing else.
    val readers = (0 until 4).map {
        thread {
            try {
                while (true) shared.blocking.recommend(3)
            } catch (_: TercetException.Closed) {
            } catch (e: Throwable) {
                e.printStackTrace()
                wrong.incrementAndGet()
            }
        }
    }
    Thread.sleep(50)
    shared.close()
    readers.forEach { it.join(10_000) }
    check("closed under four readers", wrong.get() == 0 && readers.none { it.isAlive })
}

private fun flows(shop: String) = runBlocking {
    withTimeout(30_000) {
        val tercet = Tercet.open(shop)
        val query = Query(k = 3)
        check("the first value needs no change", tercet.recommendations(query).first() == tercet.recommend(query))
        val seen = Channel<List<Recommendation>>()
        val collector = launch { tercet.recommendations(query).collect { seen.send(it) } }
        val before = seen.receive()
        tercet.record("item-3", "view")
        val after = seen.receive()
        collector.cancel()
        check("a change gives a new value", before != after && after.none { it.item == "item-3" })
        // It ends by itself when the engine is closed.
        val job = launch { tercet.recommendations(query).collect { } }
        delay(20)
        tercet.close()
        job.join()
        check("ends with close", job.isCompleted)
        check("afterwards it is empty", tercet.recommendations(query).toList().isEmpty())

        val again = Tercet.open(shop)
        val all = (0 until 8).map { async { again.recommend(5) } }.awaitAll()
        check("side by side", all.toSet().size == 1)
        try {
            again.recommendations(Query(k = 0)).first()
            check("errors come out of the flow", false)
        } catch (_: TercetException.InvalidArgument) {
            check("errors come out of the flow", true)
        }
        again.close()
    }
}

private fun replaced(shop: String, scratch: File) {
    val live = File(scratch, "live.tercet")
    File(shop).copyRecursively(live)
    val mapped = Tercet.openBlocking(live.path)
    val before = mapped.blocking.recommend(5)
    check("renamed away", live.renameTo(File(scratch, "old.tercet")))
    check("goes on", mapped.blocking.recommend(5) == before)
    check("a new one does not open", caseOf { Tercet.openBlocking(live.path) } == "NotFound")
    mapped.close()
    val copied = Tercet.openBlocking(File(scratch, "old.tercet").path, Options(copy = true))
    check("copied", copied.blocking.recommend(5) == before)
    val items = File(scratch, "old.tercet/items.safetensors")
    items.writeBytes(items.readBytes().copyOf(1000))
    check("cut short, copied: goes on", copied.blocking.recommend(5) == before)
    copied.close()
    check("cut short: refused", caseOf { Tercet.openBlocking(File(scratch, "old.tercet").path) } == "CorruptBundle")
}

private fun residentKilobytes() =
    File("/proc/self/status").readLines().first { it.startsWith("VmRSS") }.filter { it.isDigit() }.toLong()

private fun cycles(shop: String, count: Int) {
    var before = 0L
    repeat(count) { i ->
        Tercet.openBlocking(shop).use {
            it.blocking.record("item-1")
            it.blocking.recommend(5)
        }
        if (i == count / 2) {
            System.gc()
            before = residentKilobytes()
        }
    }
    System.gc()
    val after = residentKilobytes()
    println("$count open/close cycles: $before kB resident after half, $after kB at the end")
    // The Java heap breathes; a leaked engine of this bundle would be 20 kB a cycle.
    check("no growth", after - before < count * 2L)
}

fun main(arguments: Array<String>) {
    val (scenario, fixtures, scratch) = arguments.map { File(it) }
    val shop = File(fixtures, "shop.tercet").path
    check("version", libraryVersion().matches(Regex("\\d+\\.\\d+\\.\\d+")))
    Scenario(fixtures, scratch).play(scenario)
    badInput(shop)
    fourThreads(shop)
    flows(shop)
    replaced(shop, scratch)
    val java = JavaCaller.recommend(shop)
    val kotlin = Tercet.openBlocking(shop).use {
        it.blocking.record("item-3", "view")
        it.blocking.record("item-11")
        it.blocking.recommend(Query(5, filter = "price <= 12.5", diversity = 0.25f, explain = true))
    }
    check("Java gets what Kotlin gets", java == kotlin && java.size == 5)
    check("Java catches", JavaCaller.reasonForMissing("/no/such/folder").startsWith("cannot open /no/such/folder"))
    if (arguments.size > 3 && arguments[3] != "0") cycles(shop, arguments[3].toInt())
    println("$passed passed, $failed failed")
    exitProcess(if (failed == 0) 0 else 1)
}
