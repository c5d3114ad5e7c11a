/* A plan has zeros only if the map was verified against its memory: zeros MANIFEST MEMORY
 *
 * The map trusts its free frames. Prints the first wrong answer and exits with 1. */
#include <kaleidoscope.h>
#include <stdio.h>

/* The action planned for a fault on the first free frame, or -1. */
static int action(const char *manifest, const char *memory) {
  kaleidoscope_map *map = NULL;
  kaleidoscope_policy *policy = NULL;
  uint32_t frames = 0;
  if (kaleidoscope_map_open(manifest, memory, &map)) return -1;
  if (kaleidoscope_policy_new(map, "predicted", &policy)) return -1;
  if (kaleidoscope_map_frames(map, &frames)) return -1;
  int found = -1;
  for (uint64_t gfn = 0; gfn < frames && found == -1; gfn++) {
    kaleidoscope_color color = KALEIDOSCOPE_COLOR_UNKNOWN;
    if (kaleidoscope_map_color(map, gfn, &color) || color != KALEIDOSCOPE_COLOR_FREE) continue;
    kaleidoscope_planned_frame planned[64];
    size_t count = 0;
    const uint32_t write = KALEIDOSCOPE_ACCESS_WRITE;
    if (kaleidoscope_policy_plan(policy, gfn, write, NULL, 0, planned, 64, &count)) return -1;
    if (count == 0 || planned[0].gfn != gfn) return -1;
    found = (int)planned[0].action;
  }
  kaleidoscope_policy_free(policy);
  kaleidoscope_map_free(map);
  return found;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int verified = action(argv[1], argv[2]), unverified = action(argv[1], NULL);
  printf("verified: %d, unverified: %d; %s\n", verified, unverified, kaleidoscope_last_error());
  return verified == KALEIDOSCOPE_ACTION_ZERO && unverified == KALEIDOSCOPE_ACTION_FETCH ? 0 : 1;
}
