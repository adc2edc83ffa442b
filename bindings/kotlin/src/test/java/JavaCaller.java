import dev.tercet.HistoryListener;
import dev.tercet.OptionsBuilder;
import dev.tercet.QueryBuilder;
import dev.tercet.Recommendation;
import dev.tercet.Tercet;
import dev.tercet.TercetException;
import java.util.List;

/** The interface as Java sees it: compiles, and gives what Kotlin gets. */
public final class JavaCaller {
    private JavaCaller() {}

    public static List<Recommendation> recommend(String bundle) throws TercetException {
        try (Tercet tercet = Tercet.openBlocking(bundle, new OptionsBuilder().verify(true).build())) {
            int[] heard = {0};
            HistoryListener listener = revision -> heard[0]++;
            tercet.setListener(listener);
            if (!tercet.blocking().record("item-3", "view")) {
                throw new AssertionError("item-3 is in the bundle");
            }
            tercet.blocking().record("item-11");
            if (heard[0] != 2) {
                throw new AssertionError("heard " + heard[0] + " changes");
            }
            return tercet.blocking().recommend(
                    new QueryBuilder(5).filter("price <= 12.5").diversity(0.25f).explain(true).build());
        }
    }

    /** The error of a missing folder, caught as Java catches it. */
    public static String reasonForMissing(String bundle) {
        try (Tercet tercet = Tercet.openBlocking(bundle)) {
            return "opened " + tercet;
        } catch (TercetException.NotFound e) {
            return e.getReason();
        } catch (TercetException e) {
            return "wrong case " + e;
        }
    }
}
