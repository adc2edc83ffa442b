// The C++ layer: values, moves, exceptions of the library and of a listener.
//
// usage: test_cpp FIXTURES SCRATCH
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <thread>

#include <tercet.hpp>

static int passed, failed;

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (condition) {                                                            \
      passed++;                                                                 \
    } else {                                                                    \
      failed++;                                                                 \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);      \
    }                                                                           \
  } while (0)

template <typename F>
static tercet_status status_of(F call) {
  try {
    call();
    return TERCET_STATUS_OK;
  } catch (const tercet::Error &e) {
    CHECK(e.what()[0] != '\0');
    return e.status();
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const std::string shop = std::string(argv[1]) + "/shop.tercet";
  const std::string snapshot = std::string(argv[2]) + "/cpp.history";

  tercet::Options options;
  options.verify = true;
  tercet::Engine engine(shop, options);
  CHECK(engine.info().items == 60 && engine.user_vector().size() == 16);
  CHECK(engine.describe().front() == '{' && engine.describe().back() == '}');
  CHECK(engine.record("item-3", "view", 1700000000));
  CHECK(!engine.record("nowhere"));
  tercet::Query query;
  query.k = 5;
  query.explain = true;
  query.filter = "category not in (adult)";
  query.exclude = {"item-22"};
  auto best = engine.recommend(query);
  CHECK(best.size() == 5 && best[0].because.size() == 1 && best[0].because[0].item == "item-3");
  for (const auto &r : best) CHECK(r.item != "item-22");
  auto ranking = engine.rank({"item-1", "nowhere", "item-2"});
  CHECK(ranking.ranked.size() == 2 && ranking.unknown == std::vector<std::string>{"nowhere"});
  CHECK(engine.similar("th\u00e9-vert", 4).size() == 4);
  engine.save(snapshot);
  engine.erase();
  CHECK(engine.history().empty());
  engine.restore(snapshot);
  CHECK((engine.history() == std::vector<std::string>{"item-3", "nowhere"}));
  engine.erase(snapshot);
  CHECK(!std::ifstream(snapshot));

  // Items that the bundle does not hold, and the other wishes of a query.
  tercet::NewItem fresh;
  fresh.item = "fresh";
  fresh.features = {{"text", std::vector<float>(8, 0.5f)}, {"image", {1, 2, 3, 4}}};
  fresh.attributes = {{"category", {"food"}}, {"tags", {"new", "today"}}};
  CHECK(engine.add(fresh) == TERCET_ADDED_RANKED && engine.add(fresh) == TERCET_ADDED_REPLACED);
  CHECK(engine.added().size() == 1 && engine.added()[0].item == "fresh" && engine.added()[0].ranked);
  tercet::Query wishes;
  wishes.k = 100;
  wishes.filter = "tags = today";
  CHECK(engine.recommend(wishes).size() == 1 && engine.recommend(wishes)[0].item == "fresh");
  wishes.filter.reset();
  wishes.caps = {{"category", 2}};
  wishes.freshness = {{"price", 20, 4, 1}};
  wishes.popularity = 0.5f;
  wishes.explore = 1;
  wishes.seed = 7;
  CHECK(engine.recommend(wishes).size() == 8);
  wishes.caps.clear();
  wishes.calibrations = {{"category", 1}};
  wishes.diversity = 0.5f;
  wishes.dpp = true;
  wishes.explain = true;
  auto wished = engine.recommend(wishes);
  CHECK(wished.size() == 61 && wished[0].modalities.size() == 2);
  CHECK(engine.remove("fresh") && !engine.remove("fresh") && engine.added().empty());

  // A listener's own exception arrives as it is; the change stands.
  std::int64_t heard = 0;
  engine.set_listener([&](std::int64_t) { heard++; });
  engine.record("item-1");
  CHECK(heard == 1);
  engine.set_listener([](std::int64_t) { throw std::logic_error("no database"); });
  try {
    engine.record("item-2");
    CHECK(false);
  } catch (const std::logic_error &e) {
    CHECK(std::string(e.what()) == "no database");
  }
  CHECK(engine.history().size() == 2);
  engine.set_listener({});
  engine.record("item-4");

  // Moving keeps the listener; what was moved from is closed.
  engine.set_listener([&](std::int64_t) { heard++; });
  tercet::Engine moved = std::move(engine);
  moved.record("item-5");
  CHECK(heard == 2);
  CHECK(status_of([&] { engine.verify(); }) == TERCET_STATUS_CLOSED);
  moved.set_listener({});

  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&, i] {
      tercet::Engine own = moved.new_session();
      for (int j = 0; j < 50; j++) {
        own.record("item-" + std::to_string((7 * j + i) % 60));
        moved.recommend(query);
      }
    });
  for (auto &thread : threads) thread.join();
  moved.close();
  CHECK(status_of([&] { moved.recommend(query); }) == TERCET_STATUS_CLOSED);

  CHECK(status_of([] { tercet::Engine none("/no/such/folder"); }) == TERCET_STATUS_NOT_FOUND);
  query.k = 0;
  tercet::Engine again(shop);
  CHECK(status_of([&] { again.recommend(query); }) == TERCET_STATUS_INVALID_ARGUMENT);
  CHECK(status_of([&] { again.record("\xff"); }) == TERCET_STATUS_INVALID_ARGUMENT);

  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
