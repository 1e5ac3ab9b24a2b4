//! The runtime that openraft is given: tokio, on which time is not looked at more often than is of use, and in a
//! simulation chance comes from its seed.

use std::cell::Cell;
use std::time::Duration;

use openraft::{AsyncRuntime, Instant as _, OptionalSend};
use openraft_rt_tokio::TokioRuntime;

#[cfg(feature = "simulation")]
use crate::simulation::Chance;

/// What openraft waits for to within less than this is something that is about to happen, not its next tick.
const SOON: Duration = Duration::from_millis(2);

/// What part of a heartbeat openraft waits from tick to tick, as its `Config::tick_interval` has it.
const TICK: (u32, u32) = (13, 64);

/// So many ticks are left out behind each that comes.
const LEFT_OUT: u32 = 2;

thread_local! {
    static LATER: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Leaves out two of three of openraft's ticks on this thread, which is one of its runtime.
///
/// A tick looks whether a heartbeat or an election is due. openraft ticks five times for each heartbeat, which is most of
/// what an idle node does; that every third comes makes an election later by a fifth of a heartbeat on average, and
/// heartbeats a fifth rarer. The period cannot be set, but it is all that openraft asks [`AsyncRuntime::sleep_until`] for,
/// beside a pause of a microsecond.
pub(crate) fn tick_rarely(heartbeat: Duration) {
    let (part, of) = TICK;
    LATER.set(heartbeat * part / of * LEFT_OUT);
}

/// When to wake who wants to be woken at `deadline`.
fn due(deadline: Instant, now: Instant) -> Instant {
    if deadline > now + SOON {
        deadline + LATER.get()
    } else {
        deadline
    }
}

type Instant = <TokioRuntime as AsyncRuntime>::Instant;

/// The runtime.
#[derive(Debug)]
pub(crate) struct RaftRuntime(TokioRuntime);

#[cfg(not(feature = "simulation"))]
type Random = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
#[cfg(feature = "simulation")]
type Random = Chance;

impl AsyncRuntime for RaftRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> =
        <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Random;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(due(deadline, Instant::now()))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    #[cfg(not(feature = "simulation"))]
    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    #[cfg(feature = "simulation")]
    fn thread_rng() -> Self::ThreadLocalRng {
        Chance
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_left_out_and_short_pauses_are_not_longer() {
        let now = Instant::now();
        let tick = now + Duration::from_millis(15);
        assert_eq!(due(tick, now), tick, "on a thread of somebody else");
        tick_rarely(Duration::from_millis(75));
        assert_eq!((due(tick, now) - now).as_millis(), 45);
        let pause = now + Duration::from_micros(1);
        assert_eq!(due(pause, now), pause);
        assert_eq!(due(now, tick), now, "what is over");
    }
}
