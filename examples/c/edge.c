/* An edge host: one thread, every buffer static, nothing to free but the engine.
 *
 *     cc edge.c $(pkg-config --cflags --libs tercet) -o edge
 *     ./edge BUNDLE [ITEM...]
 *
 * The library itself allocates while it opens and works; after the first request its use of
 * memory stays where it is. */
#include <stdio.h>
#include <string.h>

#include <tercet.h>

enum { SHOWN = 5, KEY_BYTES = 1025, VECTOR = 1024 };

static tercet_hit hits[SHOWN];
static char key[KEY_BYTES];
static float user[VECTOR];

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, tercet_last_error());
  return 1;
}

static int show(tercet_engine *engine) {
  tercet_query query;
  size_t count, i;
  memset(&query, 0, sizeof query);
  query.size = sizeof query;
  query.k = SHOWN;
  query.diversity = 0.2f;
  if (tercet_recommend_into(engine, &query, hits, SHOWN, &count) != TERCET_STATUS_OK)
    return failed("recommend");
  for (i = 0; i < count; i++) {
    if (tercet_item_key(engine, hits[i].row, key, sizeof key, NULL) != TERCET_STATUS_OK)
      return failed("item");
    printf("  %-12s %7.4f\n", key, (double)hits[i].score);
  }
  return 0;
}

static int visit(tercet_engine *engine, char **items, int count) {
  tercet_info info;
  size_t dim;
  int i;
  memset(&info, 0, sizeof info);
  info.size = sizeof info;
  if (tercet_get_info(engine, &info) != TERCET_STATUS_OK) return failed("info");
  printf("%u items of %u values\n", (unsigned)info.items, (unsigned)info.dim);
  if (show(engine) != 0) return 1;
  for (i = 0; i < count; i++) {
    int32_t known = 0;
    if (tercet_record(engine, items[i], NULL, TERCET_NO_TIME, &known) != TERCET_STATUS_OK)
      return failed("record");
    printf("visited %s%s\n", items[i], known ? "" : ", which this bundle does not have");
    if (show(engine) != 0) return 1;
  }
  /* What the rest of the device may use: the user as numbers. A bundle without a user tower
   * has none. */
  switch (tercet_user_vector(engine, user, VECTOR, &dim)) {
    case TERCET_STATUS_OK:
      printf("user vector of %u values begins with %.4f\n", (unsigned)dim, (double)user[0]);
      return 0;
    case TERCET_STATUS_UNSUPPORTED:
      return 0;
    default:
      return failed("user vector");
  }
}

int main(int argc, char **argv) {
  tercet_options options;
  tercet_engine *engine = NULL;
  int result;
  if (argc < 2) {
    fprintf(stderr, "usage: edge BUNDLE [ITEM...]\n");
    return 2;
  }
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.max_history = 32; /* the history is the only thing that grows */
  if (tercet_open(argv[1], &options, &engine) != TERCET_STATUS_OK) return failed("open");
  result = visit(engine, argv + 2, argc - 2);
  tercet_close(&engine);
  return result;
}
