/* A stand-in for libnvidia-ml.so.1, for tests: it answers the questions that hasfaas asks, from what the environment
   variable FAKE_NVML says. That is text, one entry a line, written by tests/fakes/nvml_library.py:

     driver VERSION CUDA          CUDA as NVML counts it: 13000 is 13.0
     init CODE                    what nvmlInit answers
     gpu UUID MIB MAJOR MINOR COMPUTE_MODE MIG CLOSED LOST NAME...   MIG: 0, 1, or -1 where it is not supported; CLOSED:
                                  1 where this user may not use it; LOST: - or a file: once that exists it does not answer
     slice UUID MIB NAME...       a MIG slice of the GPU before it
     process PID MIB              on the GPU or slice before it; MIB -1 where the driver does not tell
     mps PID MIB                  likewise, a client of MPS

   The variable is read at every nvmlInit. Only prototypes and return codes follow NVIDIA's nvml.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MOST_DEVICES = 64, MOST_PROCESSES = 32, TEXT = 256 };

typedef struct { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; } Process;
typedef struct { Process list[MOST_PROCESSES]; unsigned int count; } Processes;
typedef struct Device {
  struct Device *parent;
  char uuid[TEXT], name[TEXT], lost[TEXT];
  unsigned long long bytes;
  int major, minor, mode, mig, closed;
  Processes computing, clients;
} Device;
typedef struct { unsigned long long total, free, used; } Memory;

static Device devices[MOST_DEVICES];
static int device_count, references, init_code, cuda;
static char version[TEXT];

static unsigned long long mib(long long value) { return value < 0 ? ~0ULL : (unsigned long long)value << 20; }

static void add(Processes *to, unsigned int pid, long long size) {
  if (to->count < MOST_PROCESSES) to->list[to->count++] = (Process){pid, mib(size), ~0U, ~0U};
}

static void read_line(const char *line) {
  Device *last = device_count ? &devices[device_count - 1] : NULL, *next = &devices[device_count];
  unsigned int pid;
  long long size;
  if (sscanf(line, "driver %255s %d", version, &cuda) == 2 || sscanf(line, "init %d", &init_code) == 1) return;
  if (last && sscanf(line, "process %u %lld", &pid, &size) == 2) { add(&last->computing, pid, size); return; }
  if (last && sscanf(line, "mps %u %lld", &pid, &size) == 2) { add(&last->clients, pid, size); return; }
  if (device_count == MOST_DEVICES) return;
  memset(next, 0, sizeof *next);
  if (sscanf(line, "gpu %255s %lld %d %d %d %d %d %255s %255[^\n]", next->uuid, &size, &next->major, &next->minor,
             &next->mode, &next->mig, &next->closed, next->lost, next->name) == 9) {
    next->bytes = mib(size);
    device_count++;
  } else if (last && sscanf(line, "slice %255s %lld %255[^\n]", next->uuid, &size, next->name) == 3) {
    next->bytes = mib(size);
    next->parent = last->parent ? last->parent : last;
    device_count++;
  }
}

static int gone(Device *device) {
  Device *whole = device->parent ? device->parent : device;
  return strcmp(whole->lost, "-") && access(whole->lost, F_OK) == 0;
}

/* The device with this number among those of this parent (NULL: whole GPUs). */
static Device *numbered(Device *parent, unsigned int number) {
  for (int at = 0; at < device_count; at++)
    if (devices[at].parent == parent && number-- == 0) return &devices[at];
  return NULL;
}

static int text(const char *from, char *to, unsigned int room) {
  if (strlen(from) >= room) return INSUFFICIENT_SIZE;
  strcpy(to, from);
  return SUCCESS;
}

static int listed(Processes *from, unsigned int *count, Process *to) {
  unsigned int room = *count;
  *count = from->count;
  if (from->count > (to ? room : 0)) return INSUFFICIENT_SIZE;
  if (to) memcpy(to, from->list, from->count * sizeof *to);
  return SUCCESS;
}

#define ASKED(device)                 \
  if (!references) return UNINITIALIZED; \
  if (gone(device)) return GPU_IS_LOST

int nvmlInitWithFlags(unsigned int flags) {
  const char *given = getenv("FAKE_NVML");
  char *copy = strdup(given ? given : ""), *rest = NULL;
  (void)flags;
  device_count = init_code = 0;
  for (char *line = strtok_r(copy, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) read_line(line);
  free(copy);
  if (init_code == SUCCESS) references++;
  return init_code;
}

int nvmlShutdown(void) { return references ? (references--, SUCCESS) : UNINITIALIZED; }

int nvmlSystemGetDriverVersion(char *to, unsigned int room) {
  return references ? text(version, to, room) : UNINITIALIZED;
}

int nvmlSystemGetCudaDriverVersion_v2(int *to) { return references ? (*to = cuda, SUCCESS) : UNINITIALIZED; }

int nvmlDeviceGetCount_v2(unsigned int *to) {
  if (!references) return UNINITIALIZED;
  for (*to = 0; numbered(NULL, *to); ++*to) {}
  return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **to) {
  Device *found = numbered(NULL, index);
  if (!found) return INVALID_ARGUMENT;
  ASKED(found);
  if (found->closed) return NO_PERMISSION;
  return *to = found, SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **to) {
  for (int at = 0; at < device_count; at++)
    if (!strcmp(devices[at].uuid, uuid)) {
      ASKED(&devices[at]);
      return *to = &devices[at], SUCCESS;
    }
  return NOT_FOUND;
}

int nvmlDeviceGetUUID(Device *device, char *to, unsigned int room) {
  ASKED(device);
  return text(device->uuid, to, room);
}

int nvmlDeviceGetName(Device *device, char *to, unsigned int room) {
  ASKED(device);
  return text(device->name, to, room);
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *to) {
  ASKED(device);
  if (device->bytes == ~0ULL) return NOT_SUPPORTED;
  return *to = (Memory){device->bytes, device->bytes, 0}, SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
  ASKED(device);
  return *major = device->major, *minor = device->minor, SUCCESS;
}

int nvmlDeviceGetComputeMode(Device *device, unsigned int *to) {
  ASKED(device);
  return *to = (unsigned int)device->mode, SUCCESS;
}

int nvmlDeviceGetMigMode(Device *device, unsigned int *current, unsigned int *pending) {
  ASKED(device);
  if (device->mig < 0) return NOT_SUPPORTED;
  return *current = *pending = (unsigned int)device->mig, SUCCESS;
}

/* Room for two slices more than there are, with the first place empty: a GPU seldom has all that it could have. */
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned int *to) {
  ASKED(device);
  for (*to = 0; numbered(device, *to); ++*to) {}
  return *to += 2, SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned int index, Device **to) {
  Device *found = index ? numbered(device, index - 1) : NULL;
  ASKED(device);
  return found ? (*to = found, SUCCESS) : NOT_FOUND;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *to) {
  ASKED(device);
  return listed(&device->computing, count, to);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *to) {
  ASKED(device);
  return listed(&device->clients, count, to);
}
