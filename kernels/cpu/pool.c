/* A pool of threads that sleep between jobs.
 *
 * Not OpenMP: a second copy of its runtime beside torch's spins against it, and its threads do not
 * survive a fork. Here nothing spins, a fork starts over with an empty pool, and a caller that
 * finds the pool at work does its job alone rather than wait or add threads.
 */
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "jobs.h"

struct job {
    void (*work)(void *, int64_t);
    void *context;
    int64_t items;
    atomic_int_fast64_t next;
};

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;   /* held while a job uses the pool */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;   /* of all that follows */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct job *current;
static int64_t workers;   /* threads of the pool */
static int64_t invited;   /* how many more of them may join the job */
static int64_t busy;      /* how many are at it */

static void drain(struct job *job) {
    int64_t item;
    while ((item = atomic_fetch_add(&job->next, 1)) < job->items)
        job->work(job->context, item);
}

static void *worker(void *unused) {
    (void)unused;
    fesetenv(FE_DFL_ENV);
    pthread_mutex_lock(&guard);
    for (;;) {
        while (!invited)
            pthread_cond_wait(&wake, &guard);
        invited--;
        busy++;
        struct job *job = current;
        pthread_mutex_unlock(&guard);
        drain(job);
        pthread_mutex_lock(&guard);
        if (--busy == 0)
            pthread_cond_signal(&done);
    }
    return 0;
}

/* In the child of a fork no worker is left, and the locks are as a lost thread held them. */
static void forget(void) {
    pthread_mutex_init(&owner, 0);
    pthread_mutex_init(&guard, 0);
    pthread_cond_init(&wake, 0);
    pthread_cond_init(&done, 0);
    workers = invited = busy = 0;
}

static void register_fork(void) { pthread_atfork(0, 0, forget); }

static void hire(int64_t wanted) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);   /* signals are for the program's own threads */
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, 0))
            break;   /* the job is done by fewer */
        workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

void adazeta_parallel(int64_t threads, void (*work)(void *, int64_t), void *context,
                      int64_t items) {
    struct job job = {work, context, items, 0};
    fenv_t before;
    /* Whatever the program set (flushing of subnormals, say), the bits are those of IEEE. */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int64_t helpers = (threads < items ? threads : items) - 1;
    pthread_once(&once, register_fork);
    if (helpers > 0 && pthread_mutex_trylock(&owner) == 0) {
        pthread_mutex_lock(&guard);
        hire(helpers);
        current = &job;
        invited = helpers < workers ? helpers : workers;
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&guard);
        drain(&job);
        pthread_mutex_lock(&guard);
        invited = 0;   /* who has not come yet is not needed */
        while (busy)
            pthread_cond_wait(&done, &guard);
        pthread_mutex_unlock(&guard);
        pthread_mutex_unlock(&owner);
    } else {
        drain(&job);
    }
    fesetenv(&before);
}
