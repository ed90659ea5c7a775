//! One run: a fresh OS thread, a fresh madsim runtime, a fresh world.
//!
//! The thread matters: madsim and the standard library keep state per thread (hash seeds above all), and a
//! run must not hang on the runs before it.

use std::any::Any;
use std::future::Future;
use std::time::Duration;

use madsim::Config;
use madsim::runtime::Runtime;

use crate::seed;
use crate::trace::Trace;
use crate::world::{Settings, World};

/// A run that panicked: an assertion of the scenario, the node or the simulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// The panic's message.
    pub message: String,
}

/// Simulated time after which a run is taken to hang.
const TIME_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Room for deep futures of the whole cluster.
const STACK: usize = 16 * 1024 * 1024;

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// Runs `scenario` in a new world and ends all that it started. Everything follows from `seed`, `settings` and
/// the scenario; `trace` can be read afterwards, also when the run panicked.
///
/// # Errors
/// When any task panicked, or all wait for ever.
pub fn simulate<T, F>(
    seed: u64,
    settings: Settings,
    trace: Trace,
    scenario: impl FnOnce(World) -> F + Send + 'static,
) -> Result<T, Panicked>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let run = move || {
        let mut runtime = Runtime::with_seed_and_config(seed::derive(seed, "madsim"), Config::default());
        runtime.set_time_limit(TIME_LIMIT);
        runtime.block_on(async {
            let world = World::new(seed, settings, trace);
            let result = scenario(world.clone()).await;
            world.shut_down().await;
            result
        })
    };
    std::thread::Builder::new()
        .name(format!("seed-{seed}"))
        .stack_size(STACK)
        .spawn(run)
        .expect("the system gives a thread")
        .join()
        .map_err(|payload| Panicked { message: message_of(payload.as_ref()) })
}
