/* The threads that share a job: torch's own OpenMP team, or else a pool that sleeps between jobs.
 *
 * Threads of an OpenMP team spin for some milliseconds after each parallel region. Beside a busy
 * torch, threads of our own would only get what these leave, so the team itself is asked where
 * torch has one that we can reach. It does not survive a fork; the pool does, by starting over.
 * Either way a caller that finds another one at work does its job alone rather than wait.
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

/* GOMP_parallel of an OpenMP runtime: calls work(context) from `threads` threads. */
typedef void team_function(void (*work)(void *), void *context, unsigned threads, unsigned flags);

static team_function *team;
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;   /* held while a job has many threads */
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

static void join_team(void *job) {
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    drain(job);
    fesetenv(&before);
}

EXPORT void adazeta_use_team(team_function *function) { team = function; }

/* In the child of a fork no thread is left, and the locks are as a lost thread held them. */
static void forget(void) {
    team = 0;
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

static void share(struct job *job, int64_t helpers) {
    pthread_mutex_lock(&guard);
    hire(helpers);
    current = job;
    invited = helpers < workers ? helpers : workers;
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&guard);
    drain(job);
    pthread_mutex_lock(&guard);
    invited = 0;   /* who has not come yet is not needed */
    while (busy)
        pthread_cond_wait(&done, &guard);
    pthread_mutex_unlock(&guard);
}

void adazeta_parallel(int64_t threads, void (*work)(void *, int64_t), void *context,
                      int64_t items) {
    struct job job = {work, context, items, 0};
    fenv_t before;
    /* Whatever the program set (flushing of subnormals, say), the bits are those of IEEE. */
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    pthread_once(&once, register_fork);
    if (threads > 1 && items > 1 && pthread_mutex_trylock(&owner) == 0) {
        if (team)   /* all of it, as a team of another size would cost torch's next call */
            team(join_team, &job, (unsigned)threads, 0);
        else
            share(&job, (threads < items ? threads : items) - 1);
        pthread_mutex_unlock(&owner);
    } else {
        drain(&job);
    }
    fesetenv(&before);
}
