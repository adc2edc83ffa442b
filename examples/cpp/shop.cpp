// A shop in a terminal, in C++17.
//
//     c++ -std=c++17 shop.cpp $(pkg-config --cflags --libs tercet) -o shop
//     ./shop BUNDLE [ITEM...]
#include <iomanip>
#include <iostream>

#include <tercet.hpp>

static void show(const tercet::Engine &engine) {
  tercet::Query query;
  query.k = 3;
  query.diversity = 0.2f;
  query.explain = true;
  for (const auto &r : engine.recommend(query)) {
    std::cout << "  " << std::setw(12) << std::left << r.item << ' ' << r.score;
    if (!r.because.empty()) std::cout << " because of " << r.because.front().item;
    std::cout << '\n';
  }
}

int main(int argc, char **argv) try {
  if (argc < 2) {
    std::cerr << "usage: shop BUNDLE [ITEM...]\n";
    return 2;
  }
  tercet::Engine engine(argv[1]);
  std::cout << engine.info().items << " items\n";
  show(engine);
  engine.set_listener([&](std::int64_t) { show(engine); });
  for (int i = 2; i < argc; i++) {
    std::cout << "visited " << argv[i] << '\n';
    engine.record(argv[i]);
  }
  engine.set_listener({});
  engine.erase();
  std::cout << "forgotten\n";
} catch (const tercet::Error &e) {
  std::cerr << e.what() << '\n';
  if (e.status() == TERCET_STATUS_NOT_FOUND)
    std::cerr << "make a bundle with: tercet demo --out FOLDER\n";
  return 1;
}
