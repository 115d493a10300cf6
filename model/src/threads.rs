//! The threads that share a kernel's work.
//!
//! A decode step is some hundred kernels of ten to fifty microseconds. Handing one to a sleeping thread takes
//! as long as the kernel itself, so the workers spin for a moment after each before they go to sleep; and
//! whoever asks does the work along with them, so that a worker that is late costs nothing.
#![expect(
    unsafe_code,
    reason = "workers borrow the caller's closure for as long as the caller waits"
)]

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::Thread;

/// Looks at the state that a worker takes before it goes to sleep: some 50 microseconds.
const SPINS: u32 = 20_000;

/// Sets how many threads compute: the caller's and `threads - 1` workers. 0 is one for each core.
pub fn set_threads(threads: usize) {
    let threads = if threads == 0 { cores() } else { threads };
    POOL.threads.store(threads, Ordering::Relaxed);
}

/// How many threads compute.
#[must_use]
pub fn threads() -> usize {
    match POOL.threads.load(Ordering::Relaxed) {
        0 => cores(),
        threads => threads,
    }
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

thread_local! {
    /// This thread's kernels run on it alone.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, whose kernels do not share their work: for callers that keep every core busy with threads of their own.
pub fn alone<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_ALONE.set(self.0);
        }
    }
    let _restore = Restore(IS_ALONE.replace(true));
    work()
}

/// Runs `work` on consecutive pieces of `0..items`, on all threads.
///
/// `pieces_per_thread`: more than one lets a fast thread take work from a slow one, at the price of more
/// hand-overs. While another caller has the workers, or in [`alone`], the work is done on this thread.
pub(crate) fn parallel(items: usize, pieces_per_thread: usize, work: impl Fn(Range<usize>) + Sync) {
    let threads = threads();
    if threads == 1 || items < 2 || IS_ALONE.get() {
        return work(0..items);
    }
    let mut workers = match POOL.workers.try_lock() {
        Ok(workers) => workers,
        // A piece of an earlier job panicked; the list of threads is as good as before.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return work(0..items),
    };
    while workers.len() < threads - 1 {
        let index = workers.len();
        let spawned = std::thread::Builder::new()
            .name(format!("compute-{index}"))
            .spawn(move || POOL.serve(index));
        let Ok(worker) = spawned else { break };
        workers.push(worker.thread().clone());
    }
    let piece = items.div_ceil(threads * pieces_per_thread);
    let pieces = items.div_ceil(piece);
    POOL.run(&workers, pieces, &|index| {
        work(index * piece..items.min((index + 1) * piece))
    });
}

/// The work at hand, as a pointer to the caller's closure.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    pieces: usize,
}

struct Pool {
    threads: AtomicUsize,
    /// Held by the caller whose job it is.
    workers: Mutex<Vec<Thread>>,
    /// Generation of the job (upper half), [`OPEN`], and how many workers are inside it (lower bits).
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next_piece: AtomicUsize,
    sleeping: AtomicUsize,
    panicked: AtomicUsize,
}

/// Workers may enter the job.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const GENERATION: u64 = 1 << 32;

static POOL: Pool = Pool {
    threads: AtomicUsize::new(0),
    workers: Mutex::new(Vec::new()),
    state: AtomicU64::new(0),
    job: UnsafeCell::new(None),
    next_piece: AtomicUsize::new(0),
    sleeping: AtomicUsize::new(0),
    panicked: AtomicUsize::new(0),
};

// SAFETY: `job` is written only by the holder of `workers` while the job is closed and nobody is inside, and
// read only by workers that entered an open job.
unsafe impl Sync for Pool {}

impl Pool {
    fn run(&self, workers: &[Thread], pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes, and `Close` below does not let this function end, not even by a
        // panic, before the last worker has left the job.
        let work: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, pieces };
        // SAFETY: the job is closed and empty, and `workers` is locked by the caller.
        unsafe { *self.job.get() = Some(job) };
        self.next_piece.store(0, Ordering::Relaxed);
        let generation = (self.state.load(Ordering::Relaxed) / GENERATION).wrapping_add(1);
        self.state
            .store(generation.wrapping_mul(GENERATION) | OPEN, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            workers.iter().for_each(Thread::unpark);
        }
        let close = Close(self);
        self.take_pieces(job);
        drop(close);
        assert_eq!(
            self.panicked.swap(0, Ordering::Relaxed),
            0,
            "a compute thread panicked"
        );
    }

    fn take_pieces(&self, job: Job) {
        loop {
            let index = self.next_piece.fetch_add(1, Ordering::Relaxed);
            if index >= job.pieces {
                return;
            }
            // SAFETY: whoever is here keeps the job open or is counted inside it, so the closure lives.
            unsafe { (*job.work)(index) };
        }
    }

    /// A worker's life: wait for a job that it has not seen, enter it, leave it.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            let wanted = state & OPEN != 0 && state / GENERATION != seen && worker + 1 < threads();
            if wanted
                && self
                    .state
                    .compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            {
                seen = state / GENERATION;
                // SAFETY: inside an open job, which was written before it was opened.
                let job = unsafe { *self.job.get() };
                if let Some(job) = job {
                    let pieces = std::panic::AssertUnwindSafe(|| self.take_pieces(job));
                    if std::panic::catch_unwind(pieces).is_err() {
                        self.panicked.fetch_add(1, Ordering::Relaxed);
                    }
                }
                self.state.fetch_sub(1, Ordering::SeqCst);
                spins = 0;
            } else if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                // Counted as sleeping before the last look: a job opened after it sees the count and wakes.
                self.sleeping.fetch_add(1, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                if state & OPEN == 0 || state / GENERATION == seen || worker + 1 >= threads() {
                    std::thread::park();
                }
                self.sleeping.fetch_sub(1, Ordering::SeqCst);
                spins = 0;
            }
        }
    }
}

/// Closes the job and waits for the workers inside, also when the caller's own piece panics.
struct Close<'a>(&'a Pool);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0_u32;
        while self.0.state.load(Ordering::SeqCst) & INSIDE != 0 {
            spins += 1;
            // On a machine with fewer cores than threads the worker may need this one's.
            if spins.is_multiple_of(SPINS) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_piece_is_done_once_whoever_does_it() {
        set_threads(4);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for items in (1..400).chain([10_000]) {
                        let done: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
                        parallel(items, 3, |range| {
                            range.for_each(|item| {
                                done[item].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn alone_all_pieces_are_done_here() {
        let here = std::thread::current().id();
        let is_here = |_: Range<usize>| assert_eq!(std::thread::current().id(), here);
        alone(|| {
            alone(|| parallel(1000, 4, is_here));
            parallel(1000, 4, is_here);
        });
        assert!(!IS_ALONE.get());
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_goes_on() {
        set_threads(4);
        let failed =
            std::panic::catch_unwind(|| parallel(64, 4, |range| assert!(!range.contains(&40))));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        parallel(100, 2, |range| {
            sum.fetch_add(range.sum(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}
