/* Tercet for C++17: RAII, exceptions and standard containers over tercet.h. Header only; by
 * hand, unlike tercet.h.
 *
 * Objects move and do not copy. An engine may be used from every thread; what the C functions
 * promise about threads holds here. */
#ifndef TERCET_HPP
#define TERCET_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tercet.h"

namespace tercet {

/// A status other than OK; what() is the sentence for the developer.
class Error : public std::runtime_error {
 public:
  Error(tercet_status status, const std::string &reason)
      : std::runtime_error(reason), status_(status) {}
  tercet_status status() const noexcept { return status_; }

 private:
  tercet_status status_;
};

namespace detail {
inline void check(tercet_status status) {
  if (status != TERCET_STATUS_OK) throw Error(status, tercet_last_error());
}
inline const char *c_str(const std::optional<std::string> &text) {
  return text ? text->c_str() : nullptr;
}
}  // namespace detail

struct Options {
  bool copy = false;
  bool verify = false;
  std::int32_t max_history = 0;
  bool adapt = false;
};

/// At most so many items per value of an attribute.
struct Cap {
  std::string attribute;
  std::size_t items;
};

/// A value gets its share of the user's history plus the slack, times k, rounded up.
struct Calibration {
  std::string attribute;
  float slack;
};

/// What new items gain: the weight, in standard deviations of the user's scores, halved per
/// half-life of age.
struct Freshness {
  std::string attribute;
  double now;
  double half_life;
  float weight;
};

struct Query {
  std::size_t k = 10;
  std::optional<std::string> filter;
  std::vector<std::string> exclude;
  float diversity = 0;
  std::size_t pool = 0;
  bool include_seen = false;
  bool explain = false;
  /// Diversity by a determinantal point process.
  bool dpp = false;
  std::vector<Cap> caps;
  std::vector<Calibration> calibrations;
  float popularity = 0;
  std::vector<Freshness> freshness;
  float explore = 0;
  std::uint64_t seed = 0;
  std::int32_t probes = 0;
};

struct Because {
  std::string item;
  float share;
  float contribution;
};

struct ModalityShare {
  std::string name;
  float share;
};

struct Recommendation {
  std::string item;
  float score;
  std::vector<Because> because;
  std::vector<ModalityShare> modalities;
};

/// An item that the bundle does not hold.
struct NewItem {
  std::string item;
  /// Values by modality, at least one.
  std::vector<std::pair<std::string, std::vector<float>>> features;
  /// Values by attribute.
  std::vector<std::pair<std::string, std::vector<std::string>>> attributes;
};

struct AddedItem {
  std::string item;
  /// Not so for an item of a file that this bundle cannot place.
  bool ranked;
};

struct Ranking {
  std::vector<Recommendation> ranked;
  std::vector<std::string> unknown;
};

class Engine {
 public:
  explicit Engine(const std::string &path, const Options &options = {}) {
    tercet_options c = {};
    c.size = sizeof c;
    c.copy = options.copy;
    c.verify = options.verify;
    c.max_history = options.max_history;
    c.adapt = options.adapt;
    detail::check(tercet_open(path.c_str(), &c, &handle_));
  }
  ~Engine() { tercet_close(&handle_); }
  Engine(Engine &&other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), listener_(std::move(other.listener_)) {}
  Engine &operator=(Engine &&other) noexcept {
    if (this != &other) {
      tercet_close(&handle_);
      handle_ = std::exchange(other.handle_, nullptr);
      listener_ = std::move(other.listener_);
    }
    return *this;
  }
  Engine(const Engine &) = delete;
  Engine &operator=(const Engine &) = delete;

  /// An engine for another user over the same bundle, which is not opened again.
  Engine new_session() const {
    tercet_engine *other = nullptr;
    detail::check(tercet_new_session(get(), &other));
    return Engine(other);
  }

  /// Gives the memory back before the destructor would.
  void close() { detail::check(tercet_close(&handle_)); }

  /// Returns whether the bundle knows the item.
  bool record(const std::string &item, const std::optional<std::string> &behavior = {},
              std::optional<std::int64_t> timestamp = {}) {
    std::int32_t known = 0;
    tercet_status status =
        tercet_record(get(), item.c_str(), detail::c_str(behavior),
                      timestamp.value_or(std::numeric_limits<std::int64_t>::min()), &known);
    rethrow(status);
    return known == 1;
  }

  std::vector<Recommendation> recommend(const Query &query) const {
    std::vector<const char *> exclude;
    exclude.reserve(query.exclude.size());
    for (const auto &item : query.exclude) exclude.push_back(item.c_str());
    tercet_query c = {};
    c.size = sizeof c;
    c.k = query.k;
    c.filter = detail::c_str(query.filter);
    c.exclude = exclude.data();
    c.exclude_count = exclude.size();
    c.pool = query.pool;
    c.diversity = query.diversity;
    c.include_seen = query.include_seen;
    c.explain = query.explain;
    c.dpp = query.dpp;
    c.popularity = query.popularity;
    c.explore = query.explore;
    c.seed = query.seed;
    c.probes = query.probes;
    std::vector<tercet_cap> caps;
    for (const auto &cap : query.caps) caps.push_back({cap.attribute.c_str(), cap.items, 0, 0});
    for (const auto &cap : query.calibrations)
      caps.push_back({cap.attribute.c_str(), 0, cap.slack, 1});
    c.caps = caps.data();
    c.cap_count = caps.size();
    std::vector<tercet_freshness> freshness;
    for (const auto &f : query.freshness)
      freshness.push_back({f.attribute.c_str(), f.now, f.half_life, f.weight});
    c.freshness = freshness.data();
    c.freshness_count = freshness.size();
    Results results;
    detail::check(tercet_recommend(get(), &c, &results.handle));
    return read(results);
  }

  tercet_added add(const NewItem &item) {
    std::vector<tercet_feature> features;
    for (const auto &f : item.features)
      features.push_back({f.first.c_str(), f.second.data(), f.second.size()});
    std::vector<std::vector<const char *>> texts;
    std::vector<tercet_attribute> attributes;
    // Moving a vector keeps its buffer, so the pointers stay.
    for (const auto &a : item.attributes) {
      std::vector<const char *> values;
      for (const auto &value : a.second) values.push_back(value.c_str());
      texts.push_back(std::move(values));
      attributes.push_back({a.first.c_str(), texts.back().data(), texts.back().size()});
    }
    tercet_new_item c = {};
    c.size = sizeof c;
    c.item = item.item.c_str();
    c.features = features.data();
    c.feature_count = features.size();
    c.attributes = attributes.data();
    c.attribute_count = attributes.size();
    tercet_added outcome = TERCET_ADDED_RANKED;
    rethrow(tercet_add_item(get(), &c, &outcome));
    return outcome;
  }

  /// Returns whether there was one.
  bool remove(const std::string &item) {
    std::int32_t removed = 0;
    rethrow(tercet_remove_item(get(), item.c_str(), &removed));
    return removed == 1;
  }

  std::vector<AddedItem> added() const {
    std::vector<AddedItem> items;
    for (std::size_t i = 0, n = info().added; i < n; i++) {
      char key[1025];
      std::int32_t ranked = 0;
      detail::check(tercet_added_item(get(), i, key, sizeof key, nullptr, &ranked));
      items.push_back({key, ranked == 1});
    }
    return items;
  }

  Ranking rank(const std::vector<std::string> &candidates) const {
    std::vector<const char *> keys;
    keys.reserve(candidates.size());
    for (const auto &item : candidates) keys.push_back(item.c_str());
    Results results;
    detail::check(tercet_rank(get(), keys.data(), keys.size(), &results.handle));
    Ranking ranking{read(results), {}};
    std::size_t written = 0;
    detail::check(tercet_results_unknown(results.handle, keys.data(), keys.size(), &written));
    ranking.unknown.assign(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(written));
    return ranking;
  }

  std::vector<Recommendation> similar(const std::string &item, std::size_t k) const {
    Results results;
    detail::check(tercet_similar(get(), item.c_str(), k, &results.handle));
    return read(results);
  }

  std::vector<float> user_vector() const {
    std::size_t needed = info().dim;
    std::vector<float> values(needed);
    detail::check(tercet_user_vector(get(), values.data(), values.size(), &needed));
    return values;
  }

  tercet_info info() const {
    tercet_info info = {};
    info.size = sizeof info;
    detail::check(tercet_get_info(get(), &info));
    return info;
  }

  /// What the bundle is, as JSON.
  std::string describe() const {
    std::size_t needed = 0;
    tercet_status status = tercet_describe(get(), nullptr, 0, &needed);
    if (status != TERCET_STATUS_BUFFER_TOO_SMALL) detail::check(status);
    std::string text(needed, '\0');
    detail::check(tercet_describe(get(), text.data(), text.size(), &needed));
    text.pop_back();
    return text;
  }

  std::vector<std::string> history() const {
    std::vector<std::string> items;
    for (std::size_t i = 0, n = info().events; i < n; i++) {
      char key[1025];
      detail::check(tercet_history_item(get(), i, key, sizeof key, nullptr));
      items.emplace_back(key);
    }
    return items;
  }

  void verify() const { detail::check(tercet_verify(get())); }
  void save(const std::string &path) const { detail::check(tercet_save(get(), path.c_str())); }
  void restore(const std::string &path) { rethrow(tercet_restore(get(), path.c_str())); }

  /// Learns what the user thinks of an item, one of TERCET_FEEDBACK_…; whether the bundle knows it.
  /// Open with `adapt`.
  bool feedback(const std::string &item, std::int32_t feedback,
                std::int64_t timestamp = TERCET_NO_TIME) {
    std::int32_t known = 0;
    rethrow(tercet_feedback(get(), item.c_str(), feedback, timestamp, &known));
    return known != 0;
  }

  /// Forgets all feedback: rankings are again those of the bundle and the history.
  void forget_feedback() { rethrow(tercet_forget_feedback(get())); }

  /// From now on keeps history and added items in a file, as they come; a key of 32 bytes
  /// encrypts it.
  void keep_in(const std::string &path, const std::vector<std::uint8_t> &key = {},
               bool survive_power_loss = true) {
    rethrow(tercet_keep_in(get(), path.c_str(), key.empty() ? nullptr : key.data(), key.size(),
                           survive_power_loss ? 0 : 1));
  }

  /// Everything that is kept of the user, as a JSON document.
  std::string export_user_data() const {
    std::size_t needed = 0;
    (void)tercet_export_user_data(get(), nullptr, 0, &needed);
    std::string text(needed, '\0');
    detail::check(tercet_export_user_data(get(), text.data(), text.size(), &needed));
    text.resize(needed > 0 ? needed - 1 : 0);
    return text;
  }

  void erase(const std::optional<std::string> &path = {}) {
    rethrow(tercet_erase(get(), detail::c_str(path)));
  }

  /// Called after every change of the history, on the thread that made it. What it throws
  /// comes out of the call that changed something; the change stands. An empty function
  /// removes the listener. Do not set one while another thread changes the history.
  void set_listener(std::function<void(std::int64_t)> listener) {
    auto next = listener ? std::make_unique<Listener>(std::move(listener)) : nullptr;
    detail::check(tercet_set_listener(get(), next ? &Engine::heard : nullptr, next.get()));
    listener_ = std::move(next);
  }

 private:
  struct Results {
    tercet_results *handle = nullptr;
    Results() = default;
    Results(const Results &) = delete;
    Results &operator=(const Results &) = delete;
    ~Results() { tercet_results_free(&handle); }
  };

  struct Listener {
    explicit Listener(std::function<void(std::int64_t)> f) : function(std::move(f)) {}
    std::function<void(std::int64_t)> function;
  };

  explicit Engine(tercet_engine *handle) : handle_(handle) {}

  tercet_engine *get() const {
    if (handle_ == nullptr) throw Error(TERCET_STATUS_CLOSED, "this engine has been closed or moved from");
    return handle_;
  }

  /// The exception of a listener on this thread, kept while C frames are between.
  static std::exception_ptr &thrown() {
    thread_local std::exception_ptr exception;
    return exception;
  }

  static std::int32_t heard(void *user_data, std::int64_t revision) noexcept {
    try {
      static_cast<Listener *>(user_data)->function(revision);
      return 0;
    } catch (...) {
      thrown() = std::current_exception();
      return 1;
    }
  }

  static void rethrow(tercet_status status) {
    if (status == TERCET_STATUS_LISTENER && thrown())
      std::rethrow_exception(std::exchange(thrown(), nullptr));
    detail::check(status);
  }

  static std::vector<Recommendation> read(const Results &results) {
    std::size_t count = 0, written = 0;
    detail::check(tercet_results_count(results.handle, &count));
    std::vector<tercet_recommendation> items(count);
    detail::check(tercet_results_get(results.handle, 0, items.data(), sizeof(tercet_recommendation),
                                     count, &written));
    std::vector<Recommendation> list;
    list.reserve(written);
    std::vector<tercet_because> because;
    std::vector<tercet_modality_share> shares;
    for (std::size_t i = 0; i < written; i++) {
      Recommendation r{{items[i].item, items[i].item_length}, items[i].score, {}, {}};
      if (items[i].modality_count > 0) {
        shares.resize(items[i].modality_count);
        std::size_t n = 0;
        detail::check(tercet_results_modalities(results.handle, i, shares.data(),
                                                sizeof(tercet_modality_share), shares.size(), &n));
        for (std::size_t j = 0; j < n; j++) r.modalities.push_back({shares[j].name, shares[j].share});
      }
      if (items[i].because_count > 0) {
        because.resize(items[i].because_count);
        std::size_t n = 0;
        detail::check(tercet_results_because(results.handle, i, because.data(),
                                             sizeof(tercet_because), because.size(), &n));
        for (std::size_t j = 0; j < n; j++)
          r.because.push_back({{because[j].item, because[j].item_length},
                               because[j].share,
                               because[j].contribution});
      }
      list.push_back(std::move(r));
    }
    return list;
  }

  tercet_engine *handle_ = nullptr;
  std::unique_ptr<Listener> listener_;
};

}  // namespace tercet

#endif /* TERCET_HPP */
