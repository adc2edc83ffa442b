package dev.tercet.example

import dev.tercet.Query
import dev.tercet.Recommendation
import dev.tercet.Tercet
import dev.tercet.TercetException
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.launch

/** What the screen shows. */
sealed interface ShopState {
    data object Loading : ShopState
    data class Ready(val items: List<Recommendation>) : ShopState

    /** The bundle is missing, damaged or too new: the app should fetch it, or update itself. */
    data class NeedsBundle(val updateApp: Boolean) : ShopState
    data class Failed(val reason: String) : ShopState
}

/**
 * The part of a screen that does not draw. In an Android app this derives from `ViewModel` and
 * `scope` is `viewModelScope`; nothing else changes, so it runs on a plain JVM, too.
 *
 * `bundle` is a folder that the app unpacked or downloaded (`Context.filesDir`, not the assets:
 * assets are compressed and cannot be mapped). `snapshot` is a file in `Context.noBackupFilesDir`.
 */
class ShopViewModel(
    private val scope: CoroutineScope,
    private val bundle: File,
    private val snapshot: File,
) {
    private val mutable = MutableStateFlow<ShopState>(ShopState.Loading)
    val state: StateFlow<ShopState> = mutable.asStateFlow()
    private var tercet: Tercet? = null

    fun start() {
        scope.launch {
            try {
                val opened = Tercet.open(bundle.path).also { tercet = it }
                try {
                    opened.restore(snapshot.path)
                } catch (_: TercetException.NotFound) {
                    // The first start.
                } catch (_: TercetException.CorruptSnapshot) {
                    snapshot.delete()
                }
                show(opened.recommendations(Query(k = 20, diversity = 0.2f, explain = true)))
            } catch (e: TercetException) {
                mutable.value = stateFor(e)
            }
        }
    }

    private suspend fun show(recommendations: Flow<List<Recommendation>>) {
        recommendations
            .catch { mutable.value = if (it is TercetException) stateFor(it) else throw it }
            .collect { mutable.value = ShopState.Ready(it) }
    }

    fun viewed(item: String) = act { it.record(item, "view", System.currentTimeMillis() / 1000) }

    fun forgetMe() = act { it.erase(snapshot.path) }

    /** From `onStop`: a process in the background may end at any time. */
    fun pause() = act { it.save(snapshot.path) }

    /** From `onCleared`. */
    fun clear() {
        tercet?.close()
        tercet = null
    }

    private fun act(action: suspend (Tercet) -> Unit) {
        val tercet = tercet ?: return
        scope.launch {
            try {
                action(tercet)
            } catch (_: TercetException.Closed) {
                // The screen went away meanwhile.
            } catch (e: TercetException) {
                mutable.value = stateFor(e)
            }
        }
    }

    private fun stateFor(e: TercetException): ShopState = when (e) {
        is TercetException.NotFound, is TercetException.CorruptBundle -> ShopState.NeedsBundle(updateApp = false)
        is TercetException.IncompatibleBundle -> ShopState.NeedsBundle(updateApp = true)
        else -> ShopState.Failed(e.message ?: e.javaClass.simpleName)
    }
}
