/* What a host can do wrong in C, and what four threads do at once.
 *
 * usage: misuse FIXTURES SCRATCH [CYCLES] */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tercet.h>

static int passed, failed;

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (condition) {                                                                  \
      passed++;                                                                       \
    } else {                                                                          \
      failed++;                                                                       \
      fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
              tercet_last_error());                                                   \
    }                                                                                 \
  } while (0)

static char shop[4096];

static tercet_query query_of(size_t k) {
  tercet_query query;
  memset(&query, 0, sizeof query);
  query.size = sizeof query;
  query.k = k;
  return query;
}

static tercet_engine *open_shop(void) {
  tercet_engine *engine = NULL;
  CHECK(tercet_open(shop, NULL, &engine) == TERCET_STATUS_OK);
  return engine;
}

static void null_arguments(void) {
  tercet_engine *engine = open_shop(), *none = NULL;
  tercet_results *results = NULL, *nothing = NULL;
  tercet_query query = query_of(3);
  tercet_info info = {0};
  size_t n = 0;
  tercet_hit hits[4];
  const tercet_status refused = TERCET_STATUS_INVALID_ARGUMENT;

  CHECK(tercet_open(NULL, NULL, &none) == refused && none == NULL);
  CHECK(strstr(tercet_last_error(), "path is NULL") != NULL);
  CHECK(tercet_open(shop, NULL, NULL) == refused);
  CHECK(tercet_new_session(NULL, &none) == refused);
  CHECK(tercet_new_session(engine, NULL) == refused);
  CHECK(tercet_close(NULL) == refused);
  CHECK(tercet_close(&none) == TERCET_STATUS_OK);
  CHECK(tercet_get_info(NULL, &info) == refused);
  CHECK(tercet_get_info(engine, NULL) == refused);
  CHECK(tercet_get_info(engine, &info) == refused); /* size not set */
  CHECK(tercet_describe(NULL, NULL, 0, NULL) == refused);
  CHECK(tercet_verify(NULL) == refused);
  CHECK(tercet_probe(NULL, NULL, NULL, NULL) == refused);
  CHECK(tercet_probe(engine, NULL, NULL, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_record(NULL, "item-1", NULL, TERCET_NO_TIME, NULL) == refused);
  CHECK(tercet_record(engine, NULL, NULL, TERCET_NO_TIME, NULL) == refused);
  CHECK(tercet_record(engine, "item-1", NULL, TERCET_NO_TIME, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_history_item(engine, 9, NULL, 0, NULL) == refused);
  CHECK(tercet_recommend(NULL, &query, &results) == refused && results == NULL);
  CHECK(tercet_recommend(engine, NULL, &results) == refused && results == NULL);
  CHECK(tercet_recommend(engine, &query, NULL) == refused);
  CHECK(tercet_recommend_into(engine, &query, NULL, 4, &n) == refused);
  CHECK(tercet_recommend_into(engine, &query, hits, 4, NULL) == refused);
  CHECK(tercet_rank(engine, NULL, 2, &results) == refused);
  CHECK(tercet_rank(engine, NULL, 0, &results) == TERCET_STATUS_OK);
  CHECK(tercet_results_count(results, &n) == TERCET_STATUS_OK && n == 0);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK && results == NULL);
  CHECK(tercet_similar(engine, NULL, 3, &results) == refused);
  CHECK(tercet_results_count(NULL, &n) == refused);
  CHECK(tercet_results_get(NULL, 0, NULL, sizeof(tercet_recommendation), 0, &n) == refused);
  CHECK(tercet_results_free(NULL) == refused);
  CHECK(tercet_results_free(&nothing) == TERCET_STATUS_OK);
  CHECK(tercet_user_vector(engine, NULL, 16, &n) == refused);
  CHECK(tercet_save(engine, NULL) == refused);
  CHECK(tercet_restore(engine, NULL) == refused);
  CHECK(tercet_erase(engine, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_set_listener(NULL, NULL, NULL) == refused);
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK && engine == NULL);
}

static void stale_handles(void) {
  tercet_engine *engine = open_shop(), *copy = engine, *other = NULL;
  tercet_results *results = NULL, *old;
  tercet_query query = query_of(3);
  size_t n = 0;
  const tercet_status closed = TERCET_STATUS_CLOSED;

  CHECK(tercet_new_session(engine, &other) == TERCET_STATUS_OK);
  CHECK(tercet_recommend(engine, &query, &results) == TERCET_STATUS_OK);
  old = results;
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK && engine == NULL);
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK);
  engine = copy;
  CHECK(tercet_close(&engine) == closed && engine == NULL);
  CHECK(strstr(tercet_last_error(), "closed or freed before") != NULL);
  CHECK(tercet_record(copy, "item-1", NULL, TERCET_NO_TIME, NULL) == closed);
  CHECK(tercet_verify(copy) == closed);
  CHECK(tercet_save(copy, "x") == closed);
  CHECK(tercet_set_listener(copy, NULL, NULL) == closed);
  /* Neither results nor a second session depend on the engine they came from. */
  CHECK(tercet_results_count(results, &n) == TERCET_STATUS_OK && n == 3);
  CHECK(tercet_record(other, "item-1", NULL, TERCET_NO_TIME, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK);
  CHECK(tercet_results_count(old, &n) == closed);
  CHECK(tercet_results_free(&old) == closed && old == NULL);
  /* One kind of handle for the other, and numbers that never were handles. */
  CHECK(tercet_results_count((tercet_results *)(void *)other, &n) == closed);
  CHECK(tercet_verify((tercet_engine *)(void *)&n) == closed);
  CHECK(tercet_verify((tercet_engine *)(uintptr_t)-1) == closed);
  CHECK(tercet_close(&other) == TERCET_STATUS_OK);
}

static void bad_text(void) {
  tercet_engine *engine = open_shop(), *none = NULL;
  tercet_results *results = NULL;
  tercet_query query = query_of(3);
  const char *bad[2] = {"item-1", "item-\xff"};
  const tercet_status refused = TERCET_STATUS_INVALID_ARGUMENT;
  char long_key[2000];

  CHECK(tercet_open("\xc3(", NULL, &none) == refused);
  CHECK(strstr(tercet_last_error(), "path is not UTF-8 from byte 0 on") != NULL);
  CHECK(tercet_record(engine, "item-\xff", NULL, TERCET_NO_TIME, NULL) == refused);
  CHECK(strstr(tercet_last_error(), "item is not UTF-8 from byte 5 on") != NULL);
  CHECK(tercet_record(engine, "item-1", "\xed\xa0\x80", TERCET_NO_TIME, NULL) == refused);
  CHECK(tercet_rank(engine, bad, 2, &results) == refused && results == NULL);
  CHECK(tercet_similar(engine, bad[1], 3, &results) == refused);
  query.filter = "price < \xff";
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.filter = NULL;
  query.exclude = bad;
  query.exclude_count = 2;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.exclude_count = (size_t)-1;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  memset(long_key, 'x', sizeof long_key - 1);
  long_key[sizeof long_key - 1] = '\0';
  CHECK(tercet_record(engine, long_key, NULL, TERCET_NO_TIME, NULL) == refused);
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK);
}

static void new_items(void) {
  tercet_engine *engine = open_shop();
  const tercet_status refused = TERCET_STATUS_INVALID_ARGUMENT;
  float text[8] = {0};
  const char *bad[1] = {"\xff"}, *none[1] = {NULL};
  tercet_feature feature = {"text", text, 8};
  tercet_attribute attribute = {"category", bad, 1};
  tercet_new_item item;
  tercet_added outcome;
  tercet_query query = query_of(3);
  tercet_cap cap = {"category", 1, 0, 0};
  tercet_freshness freshness = {"price", 20, 4, 1};
  tercet_results *results = NULL;
  int32_t removed;
  char key[8];
  size_t needed;

  memset(&item, 0, sizeof item);
  CHECK(tercet_add_item(engine, NULL, &outcome) == refused);
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* size not set */
  item.size = sizeof item;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* no key */
  item.item = "fresh";
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* no feature */
  item.feature_count = 1;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* features is NULL */
  item.features = &feature;
  item.attribute_count = 1;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* attributes is NULL */
  item.attributes = &attribute;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused); /* not UTF-8 */
  attribute.values = none;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused);
  attribute.count = (size_t)-1;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused);
  item.attribute_count = 0;
  feature.count = (size_t)-1;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused);
  feature.count = 7;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused);
  CHECK(strstr(tercet_last_error(), "text has 7 values, expected 8") != NULL);
  feature.count = 8;
  feature.values = NULL;
  CHECK(tercet_add_item(engine, &item, &outcome) == refused);
  feature.values = text;
  CHECK(tercet_added_item(engine, 0, key, sizeof key, &needed, NULL) == refused);
  CHECK(tercet_add_item(engine, &item, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_add_item(engine, &item, &outcome) == TERCET_STATUS_OK);
  CHECK(outcome == TERCET_ADDED_REPLACED);
  CHECK(tercet_added_item(engine, 0, key, 3, &needed, NULL) == TERCET_STATUS_BUFFER_TOO_SMALL);
  CHECK(needed == 6);
  CHECK(tercet_added_item(engine, 0, key, sizeof key, NULL, NULL) == TERCET_STATUS_OK);
  CHECK(strcmp(key, "fresh") == 0);
  CHECK(tercet_item_key(engine, 60, key, sizeof key, NULL) == TERCET_STATUS_OK);
  CHECK(strcmp(key, "fresh") == 0);
  CHECK(tercet_item_key(engine, 61, key, sizeof key, NULL) == refused);
  CHECK(tercet_remove_item(engine, NULL, &removed) == refused);
  CHECK(tercet_remove_item(engine, "fresh", &removed) == TERCET_STATUS_OK && removed == 1);
  CHECK(tercet_remove_item(engine, "fresh", NULL) == TERCET_STATUS_OK);

  query.cap_count = 1;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.caps = &cap;
  query.freshness_count = 1;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.freshness = &freshness;
  CHECK(tercet_recommend(engine, &query, &results) == TERCET_STATUS_OK);
  tercet_results_free(&results);
  freshness.attribute = NULL;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.freshness_count = 0;
  cap.attribute = "\xff";
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.cap_count = (size_t)-1;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.cap_count = 0;
  query.probes = -7;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK);
  CHECK(tercet_add_item(engine, &item, NULL) == refused);
}

static void sizes(void) {
  struct {
    tercet_query query;
    size_t later;
  } newer;
  struct {
    size_t size, k;
  } older = {sizeof older, 2};
  tercet_engine *engine = open_shop(), *none = NULL;
  tercet_results *results = NULL;
  tercet_query query = query_of((size_t)-1);
  tercet_options options = {0};
  tercet_hit hits[100];
  tercet_recommendation item;
  char key[8];
  float vector[4];
  size_t n = 0;
  const tercet_status refused = TERCET_STATUS_INVALID_ARGUMENT;

  /* A huge k gives what there is. */
  CHECK(tercet_recommend(engine, &query, &results) == TERCET_STATUS_OK);
  CHECK(tercet_results_count(results, &n) == TERCET_STATUS_OK && n == 60);
  CHECK(tercet_results_get(results, 59, &item, sizeof item, 9, &n) == TERCET_STATUS_OK && n == 1);
  CHECK(tercet_results_get(results, 60, &item, sizeof item, 1, &n) == TERCET_STATUS_OK && n == 0);
  CHECK(tercet_results_get(results, 0, &item, sizeof item - 1, 1, &n) == refused);
  CHECK(tercet_results_because(results, 60, NULL, sizeof(tercet_because), 0, &n) == refused);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK);
  CHECK(tercet_recommend_into(engine, &query, hits, 59, &n) == TERCET_STATUS_BUFFER_TOO_SMALL);
  CHECK(n == 60);
  CHECK(tercet_recommend_into(engine, &query, hits, 60, &n) == TERCET_STATUS_OK && n == 60);
  CHECK(tercet_item_key(engine, 59, key, sizeof key, &n) == TERCET_STATUS_OK);
  CHECK(strcmp(key, "item-59") == 0 && n == 8);
  CHECK(tercet_item_key(engine, 7, key, sizeof key, &n) == TERCET_STATUS_BUFFER_TOO_SMALL);
  CHECK(n == 10); /* thé-vert and the zero byte */
  CHECK(tercet_item_key(engine, 60, key, sizeof key, &n) == refused);
  CHECK(tercet_user_vector(engine, vector, 4, &n) == TERCET_STATUS_BUFFER_TOO_SMALL && n == 16);
  CHECK(tercet_similar(engine, "item-1", (size_t)-1, &results) == TERCET_STATUS_OK);
  CHECK(tercet_results_count(results, &n) == TERCET_STATUS_OK && n == 59);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK);

  /* Structures of older and newer hosts. */
  CHECK(tercet_recommend(engine, (const tercet_query *)(const void *)&older, &results) ==
        TERCET_STATUS_OK);
  CHECK(tercet_results_count(results, &n) == TERCET_STATUS_OK && n == 2);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK);
  memset(&newer, 0, sizeof newer);
  newer.query.size = sizeof newer;
  newer.query.k = 2;
  CHECK(tercet_recommend(engine, &newer.query, &results) == TERCET_STATUS_OK);
  CHECK(tercet_results_free(&results) == TERCET_STATUS_OK);
  newer.later = 1;
  CHECK(tercet_recommend(engine, &newer.query, &results) == refused);
  CHECK(strstr(tercet_last_error(), "this version of the library does not have") != NULL);
  query.size = 0;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  query.size = (size_t)-1;
  CHECK(tercet_recommend(engine, &query, &results) == refused);
  CHECK(tercet_open(shop, &options, &none) == refused && none == NULL);
  options.size = sizeof options;
  CHECK(tercet_open(shop, &options, &none) == TERCET_STATUS_OK);
  CHECK(tercet_close(&none) == TERCET_STATUS_OK);
  CHECK(tercet_close(&engine) == TERCET_STATUS_OK);
}

/* A listener that calls the engine, and one that closes it under the caller. */
static int32_t ask_back(void *user_data, int64_t revision) {
  tercet_query query = query_of(1);
  tercet_hit hit;
  size_t n;
  CHECK(revision > 0);
  return tercet_recommend_into((tercet_engine *)user_data, &query, &hit, 1, &n) !=
         TERCET_STATUS_OK;
}

static int32_t close_it(void *user_data, int64_t revision) {
  tercet_engine *engine = (tercet_engine *)user_data;
  (void)revision;
  return tercet_close(&engine) != TERCET_STATUS_OK;
}

static void listeners(void) {
  tercet_engine *engine = open_shop();
  CHECK(tercet_set_listener(engine, ask_back, engine) == TERCET_STATUS_OK);
  CHECK(tercet_record(engine, "item-1", NULL, TERCET_NO_TIME, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_set_listener(engine, close_it, engine) == TERCET_STATUS_OK);
  CHECK(tercet_record(engine, "item-2", NULL, TERCET_NO_TIME, NULL) == TERCET_STATUS_OK);
  CHECK(tercet_record(engine, "item-3", NULL, TERCET_NO_TIME, NULL) == TERCET_STATUS_CLOSED);
}

/* -- four threads -------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 200 };

struct task {
  tercet_engine *shared, *own;
  int number, wrong;
};

static void *work(void *argument) {
  struct task *task = argument;
  tercet_query query = query_of(5);
  int i;
  for (i = 0; i < ROUNDS; i++) {
    tercet_results *results = NULL;
    tercet_recommendation items[5];
    char item[32];
    size_t n = 0;
    snprintf(item, sizeof item, "item-%d", (i * 7 + task->number) % 60);
    /* Errors are a thread's own. */
    if (tercet_record(task->own, item, "nope", TERCET_NO_TIME, NULL) !=
            TERCET_STATUS_INVALID_ARGUMENT ||
        strstr(tercet_last_error(), "nope") == NULL)
      task->wrong++;
    if (tercet_record(task->own, item, "view", i, NULL) != TERCET_STATUS_OK) task->wrong++;
    if (tercet_record(task->shared, item, "buy", i, NULL) != TERCET_STATUS_OK) task->wrong++;
    if (tercet_recommend(i % 2 ? task->own : task->shared, &query, &results) != TERCET_STATUS_OK ||
        tercet_results_get(results, 0, items, sizeof *items, 5, &n) != TERCET_STATUS_OK || n > 5)
      task->wrong++;
    tercet_results_free(&results);
  }
  return NULL;
}

static void *close_shared(void *argument) {
  struct task *task = argument;
  tercet_engine *handle = task->shared;
  tercet_status status = tercet_close(&handle);
  if (status != TERCET_STATUS_OK && status != TERCET_STATUS_CLOSED) task->wrong = 1;
  task->number = status == TERCET_STATUS_OK;
  return NULL;
}

static void *read_until_closed(void *argument) {
  struct task *task = argument;
  tercet_query query = query_of(5);
  tercet_hit hits[5];
  size_t n;
  tercet_status status;
  do {
    status = tercet_recommend_into(task->shared, &query, hits, 5, &n);
  } while (status == TERCET_STATUS_OK);
  task->wrong = status != TERCET_STATUS_CLOSED;
  return NULL;
}

static void threads(void) {
  pthread_t ids[2 * THREADS];
  struct task tasks[2 * THREADS];
  tercet_engine *shared = open_shop();
  tercet_info info = {0};
  int i, closed = 0;
  for (i = 0; i < THREADS; i++) {
    tasks[i].shared = shared;
    tasks[i].number = i;
    tasks[i].wrong = 0;
    CHECK(tercet_new_session(shared, &tasks[i].own) == TERCET_STATUS_OK);
    CHECK(pthread_create(&ids[i], NULL, work, &tasks[i]) == 0);
  }
  for (i = 0; i < THREADS; i++) {
    CHECK(pthread_join(ids[i], NULL) == 0);
    CHECK(tasks[i].wrong == 0);
    CHECK(tercet_close(&tasks[i].own) == TERCET_STATUS_OK);
  }
  info.size = sizeof info;
  CHECK(tercet_get_info(shared, &info) == TERCET_STATUS_OK);
  CHECK(info.events == 512); /* of 800, the latest */

  /* Four read while four close. */
  for (i = 0; i < 2 * THREADS; i++) {
    tasks[i].shared = shared;
    tasks[i].wrong = 0;
    tasks[i].number = 0;
  }
  for (i = 0; i < 2 * THREADS; i++)
    CHECK(pthread_create(&ids[i], NULL, i < THREADS ? read_until_closed : close_shared,
                         &tasks[i]) == 0);
  for (i = 0; i < 2 * THREADS; i++) {
    CHECK(pthread_join(ids[i], NULL) == 0);
    CHECK(tasks[i].wrong == 0);
    closed += tasks[i].number;
  }
  CHECK(closed == 1);
}

/* -- replaced and cut short while open ------------------------------------------------------ */

static int copy_file(const char *from, const char *to, long limit) {
  FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
  int c, ok = in != NULL && out != NULL;
  long n = 0;
  while (ok && n++ != limit && (c = fgetc(in)) != EOF) fputc(c, out);
  if (in != NULL) fclose(in);
  if (out != NULL) fclose(out);
  return ok;
}

enum { FILES = 4 };

static void replaced(const char *scratch) {
  char from[5000], to[5000], folder[4200], aside[4200], items[5000];
  const char *names[FILES] = {"manifest.json", "items.safetensors", "user_tower.safetensors",
                              "fusion_tower.safetensors"};
  tercet_engine *mapped = NULL, *copied = NULL;
  tercet_options options = {0};
  tercet_query query = query_of(5);
  tercet_hit before[5], after[5];
  size_t n, i;
  char command[4300];

  snprintf(folder, sizeof folder, "%s/live.tercet", scratch);
  snprintf(aside, sizeof aside, "%s/old.tercet", scratch);
  snprintf(command, sizeof command, "mkdir -p '%s'", folder);
  CHECK(system(command) == 0);
  for (i = 0; i < FILES; i++) {
    snprintf(from, sizeof from, "%s/%s", shop, names[i]);
    snprintf(to, sizeof to, "%s/%s", folder, names[i]);
    CHECK(copy_file(from, to, -1));
  }
  options.size = sizeof options;
  options.copy = 1;
  CHECK(tercet_open(folder, NULL, &mapped) == TERCET_STATUS_OK);
  CHECK(tercet_open(folder, &options, &copied) == TERCET_STATUS_OK);
  CHECK(tercet_recommend_into(mapped, &query, before, 5, &n) == TERCET_STATUS_OK && n == 5);
  CHECK(tercet_recommend_into(copied, &query, after, 5, &n) == TERCET_STATUS_OK && n == 5);
  CHECK(memcmp(before, after, sizeof before) == 0);

  /* The folder is renamed away and its files deleted: an open engine goes on. */
  CHECK(rename(folder, aside) == 0);
  for (i = 0; i < FILES; i++) {
    snprintf(from, sizeof from, "%s/%s", aside, names[i]);
    snprintf(items, sizeof items, "%s/%s", scratch, names[i]);
    CHECK(copy_file(from, items, -1));
    CHECK(remove(from) == 0);
  }
  memset(after, 0, sizeof after);
  CHECK(tercet_recommend_into(mapped, &query, after, 5, &n) == TERCET_STATUS_OK);
  CHECK(memcmp(before, after, sizeof before) == 0);
  CHECK(tercet_verify(mapped) == TERCET_STATUS_NOT_FOUND);
  CHECK(tercet_close(&mapped) == TERCET_STATUS_OK);

  /* Cut short in place: a copy does not notice, a new one is refused. */
  CHECK(tercet_close(&copied) == TERCET_STATUS_OK);
  for (i = 0; i < FILES; i++) {
    snprintf(from, sizeof from, "%s/%s", scratch, names[i]);
    snprintf(to, sizeof to, "%s/%s", aside, names[i]);
    CHECK(copy_file(from, to, -1));
  }
  CHECK(tercet_open(aside, &options, &copied) == TERCET_STATUS_OK);
  snprintf(from, sizeof from, "%s/items.safetensors", scratch);
  snprintf(to, sizeof to, "%s/items.safetensors", aside);
  CHECK(copy_file(from, to, 1000));
  memset(after, 0, sizeof after);
  CHECK(tercet_recommend_into(copied, &query, after, 5, &n) == TERCET_STATUS_OK);
  CHECK(memcmp(before, after, sizeof before) == 0);
  CHECK(tercet_open(aside, NULL, &mapped) == TERCET_STATUS_CORRUPT_BUNDLE);
  CHECK(strstr(tercet_last_error(), "fetch the bundle again") != NULL);
  CHECK(tercet_close(&copied) == TERCET_STATUS_OK);
}

/* -- growth --------------------------------------------------------------------------------- */

static long resident_kilobytes(void) {
  FILE *file = fopen("/proc/self/status", "r");
  char line[256];
  long kilobytes = -1;
  while (file != NULL && fgets(line, sizeof line, file) != NULL)
    if (sscanf(line, "VmRSS: %ld", &kilobytes) == 1) break;
  if (file != NULL) fclose(file);
  return kilobytes;
}

static int open_descriptors(void) {
  int n = 0, i;
  char path[64];
  for (i = 0; i < 1024; i++) {
    FILE *file;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", i);
    file = fopen(path, "r");
    if (file != NULL) {
      n++;
      fclose(file);
    }
  }
  return n;
}

static void cycles(int count) {
  tercet_query query = query_of(5);
  long before = 0, after;
  int i, descriptors = 0, wrong = 0;
  for (i = 0; i < count; i++) {
    tercet_engine *engine = NULL;
    tercet_results *results = NULL;
    if (tercet_open(shop, NULL, &engine) != TERCET_STATUS_OK) wrong++;
    if (tercet_record(engine, "item-1", NULL, i, NULL) != TERCET_STATUS_OK) wrong++;
    if (tercet_recommend(engine, &query, &results) != TERCET_STATUS_OK) wrong++;
    if (tercet_results_free(&results) != TERCET_STATUS_OK) wrong++;
    if (tercet_close(&engine) != TERCET_STATUS_OK) wrong++;
    /* By then the allocator has what it wants to keep. */
    if (i == count / 10) {
      before = resident_kilobytes();
      descriptors = open_descriptors();
    }
  }
  after = resident_kilobytes();
  CHECK(wrong == 0);
  CHECK(open_descriptors() == descriptors);
  printf("%d open/close cycles: %ld kB resident after a tenth, %ld kB at the end\n", count, before,
         after);
  CHECK(after - before <= 512);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: misuse FIXTURES SCRATCH [CYCLES]\n");
    return 2;
  }
  snprintf(shop, sizeof shop, "%s/shop.tercet", argv[1]);
  CHECK(tercet_abi_version() >= TERCET_ABI_VERSION);
  CHECK(strcmp(tercet_status_name(99), "UNKNOWN") == 0);
  null_arguments();
  stale_handles();
  bad_text();
  new_items();
  sizes();
  listeners();
  threads();
  replaced(argv[2]);
  if (argc > 3) cycles(atoi(argv[3]));
  printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
