/* Runs bindings/scenario.tsv through the C interface and compares every line.
 *
 * usage: scenario SCENARIO FIXTURES SCRATCH */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tercet.h>

enum { LINE = 4096, WORDS = 64, LINES = 256 };

static char answers[LINES][LINE];
static int answer_count;
static int checked, failed;

static tercet_engine *engine; /* stays when closed: a stale handle must be found out */
static int64_t heard;

static void answer(const char *format, ...) {
  va_list arguments;
  if (answer_count == LINES) {
    fprintf(stderr, "too many answers\n");
    exit(2);
  }
  strcpy(answers[answer_count], "=\t");
  va_start(arguments, format);
  vsnprintf(answers[answer_count] + 2, LINE - 2, format, arguments);
  va_end(arguments);
  answer_count++;
}

static void append(const char *format, ...) {
  char *line = answers[answer_count - 1];
  size_t length = strlen(line);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line + length, LINE - length, format, arguments);
  va_end(arguments);
}

static unsigned bits(float x) {
  uint32_t word;
  memcpy(&word, &x, sizeof word);
  return word;
}

/* CORRUPT_BUNDLE to CorruptBundle, as the file has it. */
static void answer_error(tercet_status status) {
  const char *name = tercet_status_name((int32_t)status);
  char camel[64];
  size_t n = 0;
  int upper = 1;
  for (; *name != '\0' && n + 1 < sizeof camel; name++) {
    if (*name == '_') {
      upper = 1;
      continue;
    }
    camel[n++] = (char)(upper || *name < 'A' || *name > 'Z' ? *name : *name - 'A' + 'a');
    upper = 0;
  }
  camel[n] = '\0';
  answer_count = 0;
  answer("%s", "");
  snprintf(answers[0], LINE, "=!\t%s", camel);
  if (*tercet_last_error() == '\0') {
    snprintf(answers[0], LINE, "=!\t%s without a reason", camel);
  }
}

static int32_t count_changes(void *user_data, int64_t revision) {
  (void)revision;
  ++*(int64_t *)user_data;
  return 0;
}

/* Cuts at the next separator and moves on; NULL at the end. */
static char *part(char **at, char separator) {
  char *start = *at, *end;
  if (start == NULL) return NULL;
  end = strchr(start, separator);
  if (end != NULL) *end++ = '\0';
  *at = end;
  return start;
}

static int32_t fail_changes(void *user_data, int64_t revision) {
  (void)user_data;
  (void)revision;
  return 7;
}

static tercet_status list(tercet_results *results) {
  tercet_recommendation items[16];
  size_t first = 0, written, i, j, reasons;
  tercet_status status;
  do {
    status = tercet_results_get(results, first, items, sizeof *items, 16, &written);
    if (status != TERCET_STATUS_OK) return status;
    for (i = 0; i < written; i++) {
      tercet_because because[8];
      tercet_modality_share shares[8];
      answer("%s\t%08x", items[i].item, bits(items[i].score));
      if (strlen(items[i].item) != items[i].item_length) append(" wrong length");
      status = tercet_results_because(results, first + i, because, sizeof *because, 8, &reasons);
      if (status != TERCET_STATUS_OK) return status;
      if (reasons != items[i].because_count) append(" wrong number of reasons");
      for (j = 0; j < reasons; j++)
        append("\t%s\t%08x\t%08x", because[j].item, bits(because[j].share),
               bits(because[j].contribution));
      status = tercet_results_modalities(results, first + i, shares, sizeof *shares, 8, &reasons);
      if (status != TERCET_STATUS_OK) return status;
      if (reasons != items[i].modality_count) append(" wrong number of modalities");
      for (j = 0; j < reasons; j++) append("\t~%s\t%08x", shares[j].name, bits(shares[j].share));
    }
    first += written;
  } while (written > 0);
  return TERCET_STATUS_OK;
}

static tercet_status list_and_free(tercet_status status, tercet_results *results) {
  if (status == TERCET_STATUS_OK) status = list(results);
  tercet_results_free(&results);
  return status;
}

/* Array of the JSON text as a line of words: enough for names without escapes. */
static void answer_array(const char *json, const char *name) {
  char key[64];
  const char *at;
  int first = 1;
  snprintf(key, sizeof key, "\"%s\":[", name);
  at = strstr(json, key);
  answer("%s", "");
  if (at == NULL) return;
  at += strlen(key);
  while (*at == '"') {
    const char *end = strchr(at + 1, '"');
    append(first ? "%.*s" : "\t%.*s", (int)(end - at - 1), at + 1);
    first = 0;
    at = end + 1;
    if (*at == ',') at++;
  }
}

static tercet_status info(void) {
  tercet_info numbers = {0};
  char json[4096], id[64] = "";
  const char *at;
  tercet_status status;
  numbers.size = sizeof numbers;
  status = tercet_get_info(engine, &numbers);
  if (status != TERCET_STATUS_OK) return status;
  status = tercet_describe(engine, json, sizeof json, NULL);
  if (status != TERCET_STATUS_OK) return status;
  at = strstr(json, "\"bundle_id\":\"");
  if (at != NULL) sscanf(at + 13, "%63[^\"]", id);
  answer("%s\t%u\t%u\t%u\t%u", id, (unsigned)numbers.bundle_version, (unsigned)numbers.items,
         (unsigned)numbers.dim, (unsigned)numbers.window);
  answer_array(json, "behaviors");
  answer_array(json, "attributes");
  return TERCET_STATUS_OK;
}

static tercet_status history(void) {
  tercet_info numbers = {0};
  size_t i;
  tercet_status status;
  numbers.size = sizeof numbers;
  status = tercet_get_info(engine, &numbers);
  for (i = 0; status == TERCET_STATUS_OK && i < numbers.events; i++) {
    char item[64];
    status = tercet_history_item(engine, i, item, sizeof item, NULL);
    if (status == TERCET_STATUS_OK) answer("%s", item);
  }
  return status;
}

static tercet_status add(char **words, int count) {
  tercet_new_item item;
  tercet_feature features[8];
  tercet_attribute attributes[8];
  static float values[8][64];
  static const char *texts[8][64];
  tercet_added outcome;
  tercet_status status;
  int i;
  memset(&item, 0, sizeof item);
  item.size = sizeof item;
  item.item = words[1];
  item.features = features;
  item.attributes = attributes;
  for (i = 2; i < count; i++) {
    char *at = words[i], *name = part(&at, '='), *value;
    if (*name == '@') {
      tercet_attribute *a = &attributes[item.attribute_count];
      a->attribute = name + 1;
      a->values = texts[item.attribute_count++];
      a->count = 0;
      while ((value = part(&at, ',')) != NULL) ((const char **)a->values)[a->count++] = value;
    } else {
      float *to = values[item.feature_count];
      tercet_feature *f = &features[item.feature_count++];
      f->modality = name;
      f->values = to;
      f->count = 0;
      while ((value = part(&at, ',')) != NULL) to[f->count++] = strtof(value, NULL);
    }
  }
  status = tercet_add_item(engine, &item, &outcome);
  if (status == TERCET_STATUS_OK)
    answer("%s\theard\t%d",
           outcome == TERCET_ADDED_RANKED     ? "ranked"
           : outcome == TERCET_ADDED_REPLACED ? "replaced"
                                              : "in the bundle",
           (int)heard);
  return status;
}

static tercet_status added(void) {
  tercet_info numbers = {0};
  size_t i;
  tercet_status status;
  numbers.size = sizeof numbers;
  status = tercet_get_info(engine, &numbers);
  for (i = 0; status == TERCET_STATUS_OK && i < numbers.added; i++) {
    char item[64];
    int32_t ranked;
    status = tercet_added_item(engine, i, item, sizeof item, NULL, &ranked);
    if (status == TERCET_STATUS_OK) answer("%s\t%s", item, ranked == 1 ? "ranked" : "kept");
  }
  return status;
}

static tercet_status recommend(char **words, int count) {
  tercet_query query;
  tercet_cap caps[8];
  tercet_freshness freshness[8];
  const char *exclude[WORDS];
  tercet_results *results = NULL;
  tercet_status status;
  int i;
  memset(&query, 0, sizeof query);
  query.size = sizeof query;
  query.exclude = exclude;
  query.caps = caps;
  query.freshness = freshness;
  memset(caps, 0, sizeof caps);
  for (i = 1; i < count; i++) {
    char *value = strchr(words[i], '=');
    if (value != NULL) *value++ = '\0';
    if (strcmp(words[i], "k") == 0) query.k = strtoul(value, NULL, 10);
    else if (strcmp(words[i], "filter") == 0) query.filter = value;
    else if (strcmp(words[i], "diversity") == 0) query.diversity = strtof(value, NULL);
    else if (strcmp(words[i], "pool") == 0) query.pool = strtoul(value, NULL, 10);
    else if (strcmp(words[i], "include_seen") == 0) query.include_seen = 1;
    else if (strcmp(words[i], "explain") == 0) query.explain = 1;
    else if (strcmp(words[i], "dpp") == 0) query.dpp = 1;
    else if (strcmp(words[i], "popularity") == 0) query.popularity = strtof(value, NULL);
    else if (strcmp(words[i], "explore") == 0) query.explore = strtof(value, NULL);
    else if (strcmp(words[i], "seed") == 0) query.seed = strtoul(value, NULL, 10);
    else if (strcmp(words[i], "probes") == 0) query.probes = (int32_t)strtol(value, NULL, 10);
    else if (strcmp(words[i], "cap") == 0) {
      caps[query.cap_count].attribute = part(&value, ':');
      caps[query.cap_count++].items = strtoul(value, NULL, 10);
    } else if (strcmp(words[i], "calibrate") == 0) {
      caps[query.cap_count].attribute = part(&value, ':');
      caps[query.cap_count].calibrated = 1;
      caps[query.cap_count++].slack = strtof(value, NULL);
    } else if (strcmp(words[i], "freshness") == 0) {
      tercet_freshness *f = &freshness[query.freshness_count++];
      f->attribute = part(&value, ':');
      f->now = strtod(part(&value, ':'), NULL);
      f->half_life = strtod(part(&value, ':'), NULL);
      f->weight = strtof(value, NULL);
    } else if (strcmp(words[i], "exclude") == 0) {
      char *item;
      for (item = strtok(value, ","); item != NULL; item = strtok(NULL, ","))
        exclude[query.exclude_count++] = item;
    } else {
      fprintf(stderr, "unknown setting %s\n", words[i]);
      exit(2);
    }
  }
  status = tercet_recommend(engine, &query, &results);
  if (status == TERCET_STATUS_OK) {
    /* The call without strings must agree with the one with them. */
    static tercet_hit hits[4096];
    tercet_recommendation item;
    size_t n, total, written;
    status = tercet_recommend_into(engine, &query, hits, 4096, &n);
    if (status != TERCET_STATUS_OK || tercet_results_count(results, &total) != TERCET_STATUS_OK ||
        n != total)
      answer("tercet_recommend_into found %u", (unsigned)n);
    for (i = 0; i < (int)n; i++) {
      char key[64];
      if (tercet_results_get(results, (size_t)i, &item, sizeof item, 1, &written) !=
              TERCET_STATUS_OK ||
          written != 1 || hits[i].row != item.row || bits(hits[i].score) != bits(item.score) ||
          tercet_item_key(engine, hits[i].row, key, sizeof key, NULL) != TERCET_STATUS_OK ||
          strcmp(key, item.item) != 0)
        answer("tercet_recommend_into differs at %d", i);
    }
  }
  return list_and_free(status, results);
}

static tercet_status rank(char **words, int count) {
  tercet_results *results = NULL;
  const char *unknown[WORDS];
  size_t n = 0, i;
  tercet_status status =
      tercet_rank(engine, (const char *const *)(words + 1), (size_t)(count - 1), &results);
  if (status == TERCET_STATUS_OK) status = list(results);
  if (status == TERCET_STATUS_OK) status = tercet_results_unknown(results, unknown, WORDS, &n);
  for (i = 0; i < n; i++) answer("unknown\t%s", unknown[i]);
  tercet_results_free(&results);
  return status;
}

static const char *given(const char *word) { return strcmp(word, "-") == 0 ? NULL : word; }

static char *path_of(const char *name, const char *fixtures, const char *scratch) {
  static char path[LINE];
  if (name == NULL) return NULL;
  snprintf(path, sizeof path, "%s/%s", name[0] == '$' ? scratch : fixtures,
           name[0] == '$' ? name + 1 : name);
  return path;
}

static tercet_status run(char **words, int count, const char *fixtures, const char *scratch) {
  const char *verb = words[0];
  tercet_status status;
  if (strcmp(verb, "open") == 0) {
    tercet_options options = {0};
    tercet_engine *opened = NULL;
    int i;
    options.size = sizeof options;
    for (i = 2; i < count; i++) {
      if (strcmp(words[i], "copy") == 0) options.copy = 1;
      else if (strcmp(words[i], "verify") == 0) options.verify = 1;
      else if (strcmp(words[i], "adapt") == 0) options.adapt = 1;
      else options.max_history = (int32_t)strtol(words[i] + strlen("max_history="), NULL, 10);
    }
    status = tercet_open(path_of(words[1], fixtures, scratch), count > 2 ? &options : NULL, &opened);
    if (status == TERCET_STATUS_OK) engine = opened;
    return status;
  }
  if (strcmp(verb, "close") == 0) {
    tercet_engine *handle = engine;
    status = tercet_close(&handle);
    /* In the scenario closing twice is fine; through a copy of the handle it is found out. */
    return status == TERCET_STATUS_CLOSED ? TERCET_STATUS_OK : status;
  }
  if (strcmp(verb, "info") == 0) return info();
  if (strcmp(verb, "record") == 0) {
    const char *time = given(words[3]);
    int32_t known = -1;
    status = tercet_record(engine, words[1], given(words[2]),
                           time != NULL ? strtoll(time, NULL, 10) : TERCET_NO_TIME, &known);
    if (status == TERCET_STATUS_OK)
      answer("%s\theard\t%d", known == 1 ? "known" : "unknown", (int)heard);
    return status;
  }
  if (strcmp(verb, "history") == 0) return history();
  if (strcmp(verb, "add") == 0) return add(words, count);
  if (strcmp(verb, "added") == 0) return added();
  if (strcmp(verb, "feedback") == 0) {
    int32_t known = -1, kind = TERCET_FEEDBACK_POSITIVE;
    if (strcmp(words[1], "forget") == 0) {
      status = tercet_forget_feedback(engine);
      if (status == TERCET_STATUS_OK) answer("forgotten\theard\t%d", (int)heard);
      return status;
    }
    if (strcmp(words[2], "skipped") == 0) kind = TERCET_FEEDBACK_SKIPPED;
    if (strcmp(words[2], "disliked") == 0) kind = TERCET_FEEDBACK_DISLIKED;
    status = tercet_feedback(engine, words[1], kind, TERCET_NO_TIME, &known);
    if (status == TERCET_STATUS_OK)
      answer("%s\theard\t%d", known == 1 ? "known" : "unknown", (int)heard);
    return status;
  }
  if (strcmp(verb, "remove") == 0) {
    int32_t removed = -1;
    status = tercet_remove_item(engine, words[1], &removed);
    if (status == TERCET_STATUS_OK)
      answer("%s\theard\t%d", removed == 1 ? "removed" : "not there", (int)heard);
    return status;
  }
  if (strcmp(verb, "recommend") == 0) return recommend(words, count);
  if (strcmp(verb, "rank") == 0) return rank(words, count);
  if (strcmp(verb, "similar") == 0) {
    tercet_results *results = NULL;
    status = tercet_similar(engine, words[1], strtoul(words[2], NULL, 10), &results);
    return list_and_free(status, results);
  }
  if (strcmp(verb, "vector") == 0) {
    float values[1024];
    size_t needed, i;
    status = tercet_user_vector(engine, values, 1024, &needed);
    if (status != TERCET_STATUS_OK) return status;
    answer("%08x", bits(values[0]));
    for (i = 1; i < needed; i++) append("\t%08x", bits(values[i]));
    return status;
  }
  if (strcmp(verb, "probe") == 0) {
    int32_t found, expected, passed;
    status = tercet_probe(engine, &found, &expected, &passed);
    if (status == TERCET_STATUS_UNSUPPORTED) {
      answer("none");
      return TERCET_STATUS_OK;
    }
    if (status == TERCET_STATUS_OK)
      answer("%d\t%d\t%s", (int)found, (int)expected, passed == 1 ? "passed" : "failed");
    return status;
  }
  if (strcmp(verb, "verify") == 0) {
    status = tercet_verify(engine);
    if (status == TERCET_STATUS_OK) answer("fine");
    return status;
  }
  if (strcmp(verb, "save") == 0)
    return tercet_save(engine, path_of(words[1], fixtures, scratch));
  if (strcmp(verb, "restore") == 0)
    return tercet_restore(engine, path_of(words[1], fixtures, scratch));
  if (strcmp(verb, "keep") == 0) {
    unsigned char key[32];
    size_t size = strcmp(words[2], "short") == 0 ? 5 : sizeof key;
    const char *path = path_of(words[1], fixtures, scratch);
    memset(key, atoi(words[2]), sizeof key);
    status = tercet_keep_in(engine, path, strcmp(words[2], "-") == 0 ? NULL : key, size, 0);
    if (status != TERCET_STATUS_OK) return status;
    status = history();
    if (status == TERCET_STATUS_OK && answer_count == 0) answer("empty");
    return status;
  }
  if (strcmp(verb, "export") == 0) {
    char data[4096], item[64] = "", behavior[64] = "";
    const char *at = data;
    int events = 0;
    status = tercet_export_user_data(engine, data, sizeof data, NULL);
    if (status != TERCET_STATUS_OK) return status;
    while ((at = strstr(at, "\"item\": \"")) != NULL) {
      if (events++ == 0) sscanf(at, "\"item\": \"%63[^\"]", item);
      at++;
    }
    at = strstr(data, "\"behavior\": \"");
    if (at != NULL) sscanf(at, "\"behavior\": \"%63[^\"]", behavior);
    answer("%d\t%s\t%s", events, item, behavior);
    return TERCET_STATUS_OK;
  }
  if (strcmp(verb, "erase") == 0) {
    const char *path = path_of(given(words[1]), fixtures, scratch);
    FILE *file = NULL;
    status = tercet_erase(engine, path);
    if (path != NULL) file = fopen(path, "rb");
    if (status == TERCET_STATUS_OK)
      answer("%s\theard\t%d", file != NULL ? "there" : "gone", (int)heard);
    if (file != NULL) fclose(file);
    return status;
  }
  if (strcmp(verb, "listener") == 0) {
    heard = 0;
    if (strcmp(words[1], "count") == 0) return tercet_set_listener(engine, count_changes, &heard);
    if (strcmp(words[1], "fail") == 0) return tercet_set_listener(engine, fail_changes, NULL);
    return tercet_set_listener(engine, NULL, NULL);
  }
  fprintf(stderr, "unknown step %s\n", verb);
  exit(2);
}

static void compare(int step_line, char expected[LINES][LINE], int expected_count) {
  int i, same = expected_count == answer_count;
  if (step_line == 0) return;
  for (i = 0; same && i < expected_count; i++) same = strcmp(expected[i], answers[i]) == 0;
  checked++;
  if (same) return;
  failed++;
  fprintf(stderr, "line %d:\n", step_line);
  for (i = 0; i < expected_count; i++) fprintf(stderr, "  expected %s\n", expected[i]);
  for (i = 0; i < answer_count; i++) fprintf(stderr, "  got      %s\n", answers[i]);
}

int main(int argc, char **argv) {
  static char line[LINE], expected[LINES][LINE];
  int number = 0, step_line = 0, expected_count = 0;
  FILE *file;
  if (argc != 4) {
    fprintf(stderr, "usage: scenario SCENARIO FIXTURES SCRATCH\n");
    return 2;
  }
  file = fopen(argv[1], "rb");
  if (file == NULL) {
    fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
    return 2;
  }
  while (fgets(line, sizeof line, file) != NULL) {
    char *words[WORDS];
    int count = 0;
    char *at = line;
    number++;
    line[strcspn(line, "\n")] = '\0';
    if (line[0] == '=') {
      snprintf(expected[expected_count++], LINE, "%s", line);
      continue;
    }
    if (line[0] == '\0' || line[0] == '#') continue;
    compare(step_line, expected, expected_count);
    step_line = number;
    expected_count = answer_count = 0;
    while (count < WORDS) {
      words[count++] = at;
      at = strchr(at, '\t');
      if (at == NULL) break;
      *at++ = '\0';
    }
    {
      tercet_status status = run(words, count, argv[2], argv[3]);
      if (status != TERCET_STATUS_OK) answer_error(status);
    }
  }
  compare(step_line, expected, expected_count);
  fclose(file);
  printf("%d passed, %d failed\n", checked - failed, failed);
  return failed == 0 && checked > 0 ? 0 : 1;
}
