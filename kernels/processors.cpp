// How many processors this process may use.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rngru.h"

namespace {

// The number in a file of the control group's directory, or of its parents up to the root: the least
// quota counts. `group` is shortened on the way.
void least_quota(const char* root, const char* name, const char* period_name, char* group, double& cpus) {
    for (;;) {
        char path[1400];
        double quota = -1, period = 100000;
        snprintf(path, sizeof path, "%s%s/%s", root, group, name);
        if (FILE* f = fopen(path, "r")) {
            if (period_name) {  // version 1: two files, quota -1 where there is none
                if (fscanf(f, "%lf", &quota) != 1) quota = -1;
                snprintf(path, sizeof path, "%s%s/%s", root, group, period_name);
                FILE* g = fopen(path, "r");
                if (!g || fscanf(g, "%lf", &period) != 1) quota = -1;
                if (g) fclose(g);
            } else if (fscanf(f, "%lf %lf", &quota, &period) != 2) {  // version 2: "max 100000" where there is none
                quota = -1;
            }
            fclose(f);
        }
        if (quota > 0 && period > 0 && quota / period < cpus) cpus = quota / period;
        char* slash = strrchr(group, '/');
        if (!slash) return;
        *slash = 0;
    }
}

#ifdef __linux__
double container_limit(double cpus) {
    FILE* f = fopen("/proc/self/cgroup", "r");
    if (!f) return cpus;
    char line[1200];  // "0::/path" (version 2) or "7:cpu,cpuacct:/path" (version 1)
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char* controllers = strchr(line, ':');
        char* group = controllers ? strchr(controllers + 1, ':') : nullptr;
        if (!group) continue;
        *group++ = 0;
        ++controllers;
        if (!*controllers) {
            least_quota("/sys/fs/cgroup", "cpu.max", nullptr, group, cpus);
            continue;
        }
        bool cpu = false;
        char names[1200];
        strcpy(names, controllers);
        for (char *rest = names, *one; (one = strsep(&rest, ","));) cpu = cpu || !strcmp(one, "cpu");
        if (!cpu) continue;
        char root[1300];
        snprintf(root, sizeof root, "/sys/fs/cgroup/%s", controllers);
        least_quota(root, "cpu.cfs_quota_us", "cpu.cfs_period_us", group, cpus);
    }
    fclose(f);
    return cpus;
}
#endif
}  // namespace

int rngru_threads_available(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
    const double limit = container_limit((double)n);
    if (limit < (double)n) n = (long)limit + (limit > (double)(long)limit);  // half a processor is one thread
#endif
    return n < 1 ? 1 : (int)n;
}
