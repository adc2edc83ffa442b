package dev.tercet

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.atomic.AtomicBoolean
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.takeWhile
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.withContext

/**
 * Recommendations for one user, from a bundle on this device.
 *
 * ```
 * Tercet.open(path).use { tercet ->
 *     tercet.record("sku-17", behavior = "view")
 *     tercet.recommend(Query(k = 10, filter = "category not in (adult)"))
 * }
 * ```
 *
 * Every method may be called from any thread and throws [TercetException], whose cases are what
 * an app can do about them. The suspending ones leave the caller's thread; [blocking] has the same
 * methods for Java and for tests. Close it: the memory lies outside the Java heap.
 */
public class Tercet private constructor(
    private val engine: TercetEngine,
    private val dispatcher: CoroutineDispatcher,
) : AutoCloseable {
    private val closed = AtomicBoolean(false)

    /** Grows with every change of the history; negative once closed. */
    private val revision = MutableStateFlow(0L)

    /** The same methods for callers that may wait: Java, worker threads, tests. */
    @get:JvmName("blocking")
    public val blocking: Blocking = Blocking()

    /** Adds an event. Returns whether the bundle knows the item; it is kept in both cases. */
    public suspend fun record(item: String, behavior: String? = null, timestamp: Long? = null): Boolean =
        away { blocking.record(item, behavior, timestamp) }

    /**
     * Learns what the user thinks of an item, if opened with `Options(adapt = true)`: rankings follow.
     * Returns whether the bundle knows the item. What the user did is recorded besides.
     */
    public suspend fun feedback(item: String, feedback: Feedback, timestamp: Long? = null): Boolean =
        away { blocking.feedback(item, feedback, timestamp) }

    /** Forgets all feedback: rankings are again those of the bundle and the history. */
    public suspend fun forgetFeedback(): Unit = away { blocking.forgetFeedback() }

    /**
     * Adds an item that the bundle does not hold: the bundle's fusion tower makes its vector, and it
     * is ranked with the others from then on. [save] keeps it.
     */
    public suspend fun addItem(item: NewItem): Added = away { blocking.addItem(item) }

    /** Takes an added item away. Returns whether there was one. */
    public suspend fun removeItem(item: String): Boolean = away { blocking.removeItem(item) }

    /** The added items, in the order in which they came. */
    public suspend fun addedItems(): List<AddedItem> = away { blocking.addedItems() }

    /** The best items for this user. */
    public suspend fun recommend(query: Query): List<Recommendation> = away { blocking.recommend(query) }

    /** The best [k] items for this user. */
    public suspend fun recommend(k: Int): List<Recommendation> = away { blocking.recommend(k) }

    /** Scores given candidates for this user, best first. */
    public suspend fun rank(candidates: List<String>): Ranking = away { blocking.rank(candidates) }

    /** The [k] items most like [item]. Does not depend on the user. */
    public suspend fun similar(item: String, k: Int): List<Recommendation> = away { blocking.similar(item, k) }

    /** The user vector of the present history. */
    public suspend fun userVector(): FloatArray = away { blocking.userVector() }

    /** What the bundle is. */
    public suspend fun info(): Info = away { blocking.info() }

    /** The events, oldest first. */
    public suspend fun history(): List<Event> = away { blocking.history() }

    /** Hashes every file and checks every row: once after a download. */
    public suspend fun verify(): Unit = away { blocking.verify() }

    /** Runs the bundle's own health check; null if it has none. */
    public suspend fun probe(): Probe? = away { blocking.probe() }

    /** Writes history and added items to a file, which is replaced at once or not at all. */
    public suspend fun save(path: String): Unit = away { blocking.save(path) }

    /** Replaces history and added items by those of a file; on an error they stay as they were. */
    public suspend fun restore(path: String): Unit = away { blocking.restore(path) }

    /**
     * From now on keeps history and added items in a file, as they come; what the file holds takes
     * the place of what is there now. Once a call that changes something has returned, the change
     * survives the end of the process and, if wished, a loss of power. A [key] of 32 bytes, from the
     * Android keystore say, encrypts the file.
     */
    public suspend fun keepIn(path: String, key: ByteArray? = null, survivePowerLoss: Boolean = true): Unit =
        away { blocking.keepIn(path, key, survivePowerLoss) }

    /** Everything that is kept of the user, as a JSON document: what users may ask for. */
    public suspend fun exportUserData(): String = away { blocking.exportUserData() }

    /** Forgets everything about the user, and deletes the file, if given. */
    public suspend fun erase(path: String? = null): Unit = away { blocking.erase(path) }

    /**
     * The recommendations now, and again whenever the history has changed. Changes that come
     * faster than they can be answered are answered once. Ends when this is closed.
     */
    public fun recommendations(query: Query): Flow<List<Recommendation>> =
        flow { revision.takeWhile { it >= 0 }.collect { emit(recommend(query)) } }
            .catch { if (it !is TercetException.Closed) throw it }

    /**
     * Sets or removes what is told after every change of the history, on the thread of the call
     * that made it. If it throws, that call throws [TercetException.Listener]; the change stands.
     */
    public fun setListener(listener: HistoryListener?): Unit = guarded { engine.setListener(listener) }

    /** Another user over the same bundle, which is not opened again. Close it, too. */
    public fun newSession(): Tercet = Tercet(guarded { engine.newSession() }, dispatcher)

    /** Gives the memory back. Later calls throw [TercetException.Closed]; closing twice is fine. */
    override fun close() {
        if (closed.compareAndSet(false, true)) {
            revision.value = -1
            engine.shutDown()
            engine.destroy()
        }
    }

    private suspend fun <T> away(call: () -> T): T = withContext(dispatcher) { call() }

    private inline fun <T> guarded(call: () -> T): T =
        try {
            call()
        } catch (e: IllegalStateException) {
            // What the generated class says after `destroy`.
            if (closed.get()) {
                throw TercetException.Closed("this has been closed; open the bundle again to get a new one")
            }
            throw e
        } catch (e: InternalException) {
            throw TercetException.Internal(e.message ?: "no text")
        } catch (e: java.nio.charset.CharacterCodingException) {
            // A lone half of a surrogate pair has no UTF-8 form.
            throw TercetException.InvalidArgument("a text is not valid UTF-16: $e")
        }

    private inline fun <T> changing(call: () -> T): T {
        try {
            return guarded(call).also { changed() }
        } catch (e: TercetException.Listener) {
            changed()
            throw e
        }
    }

    private fun changed(): Unit = revision.update { if (it < 0) it else it + 1 }

    /** The methods of [Tercet] without coroutines. */
    public inner class Blocking internal constructor() {
        @JvmOverloads
        @Throws(TercetException::class)
        public fun record(item: String, behavior: String? = null, timestamp: Long? = null): Boolean =
            changing { engine.record(Event(item, behavior, timestamp)) }

        @JvmOverloads
        @Throws(TercetException::class)
        public fun feedback(item: String, feedback: Feedback, timestamp: Long? = null): Boolean =
            changing { engine.feedback(item, feedback, timestamp) }

        @Throws(TercetException::class)
        public fun forgetFeedback(): Unit = changing { engine.forgetFeedback() }

        @Throws(TercetException::class)
        public fun addItem(item: NewItem): Added = changing { engine.addItem(item) }

        @Throws(TercetException::class)
        public fun removeItem(item: String): Boolean = changing { engine.removeItem(item) }

        @Throws(TercetException::class)
        public fun addedItems(): List<AddedItem> = guarded { engine.addedItems() }

        @Throws(TercetException::class)
        public fun recommend(query: Query): List<Recommendation> = guarded { engine.recommend(query) }

        @Throws(TercetException::class)
        public fun recommend(k: Int): List<Recommendation> = recommend(Query(k))

        @Throws(TercetException::class)
        public fun rank(candidates: List<String>): Ranking = guarded { engine.rank(candidates) }

        @Throws(TercetException::class)
        public fun similar(item: String, k: Int): List<Recommendation> = guarded { engine.similar(item, k) }

        @Throws(TercetException::class)
        public fun userVector(): FloatArray {
            val bytes = ByteBuffer.wrap(guarded { engine.userVector() }).order(ByteOrder.LITTLE_ENDIAN)
            return FloatArray(bytes.remaining() / Float.SIZE_BYTES).also { bytes.asFloatBuffer().get(it) }
        }

        @Throws(TercetException::class)
        public fun info(): Info = guarded { engine.info() }

        @Throws(TercetException::class)
        public fun history(): List<Event> = guarded { engine.history() }

        @Throws(TercetException::class)
        public fun verify(): Unit = guarded { engine.verify() }

        @Throws(TercetException::class)
        public fun probe(): Probe? = guarded { engine.probe() }

        @Throws(TercetException::class)
        public fun save(path: String): Unit = guarded { engine.save(path) }

        @Throws(TercetException::class)
        public fun restore(path: String): Unit = changing { engine.restore(path) }

        @JvmOverloads
        @Throws(TercetException::class)
        public fun keepIn(path: String, key: ByteArray? = null, survivePowerLoss: Boolean = true): Unit =
            changing { engine.keepIn(path, key, survivePowerLoss) }

        @Throws(TercetException::class)
        public fun exportUserData(): String = guarded { engine.exportUserData() }

        @JvmOverloads
        @Throws(TercetException::class)
        public fun erase(path: String? = null): Unit = changing { engine.erase(path) }
    }

    public companion object {
        /** Opens the bundle in a folder. Nothing is read but its manifest and a header. */
        public suspend fun open(
            path: String,
            options: Options = Options(),
            dispatcher: CoroutineDispatcher = Dispatchers.IO,
        ): Tercet = withContext(dispatcher) { Tercet(TercetEngine.open(path, options), dispatcher) }

        /** [open] for callers that may wait. */
        @JvmStatic
        @JvmOverloads
        @Throws(TercetException::class)
        public fun openBlocking(path: String, options: Options = Options()): Tercet =
            Tercet(TercetEngine.open(path, options), Dispatchers.IO)
    }
}
