//! Deduplication of tasks: a retry with the same `taskuuid` gets the answer of the first request, also while it is in
//! progress.
//!
//! Invariants: a retry has the same path and body; a different command under a known uuid is carried out; the work
//! continues when its caller disconnects; stored answers are bounded in number and age.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::answer::Answer;

/// Largest number of stored tasks. Too low: a late retry is carried out again. Too high: memory, up to one answer each.
pub(crate) const MAX_TASKS: usize = 1024;

/// Life of a stored task. Too low: a late retry is carried out again. Too high: memory.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(600);

/// Identity of a task: the uuid, and a digest of path and body.
pub(crate) type Task = (Uuid, [u8; 32]);

type Known = Shared<BoxFuture<'static, Answer>>;

#[derive(Default)]
pub(crate) struct Tasks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Task, Known>,
    order: VecDeque<(Instant, Task)>,
}

impl Tasks {
    /// Runs the work unless the task is known. Returns its answer, or the stored one.
    pub(crate) fn once(&self, task: Task, work: impl Future<Output = Answer> + Send + 'static) -> Known {
        let mut state = self.state.lock();
        let now = Instant::now();
        while let Some((at, old)) = state.order.front().copied() {
            if state.order.len() < MAX_TASKS && now.duration_since(at) < MAX_AGE {
                break;
            }
            state.order.pop_front();
            state.known.remove(&old);
        }
        if let Some(known) = state.known.get(&task) {
            return known.clone();
        }
        let running = tokio::spawn(work);
        let answer = async move { running.await.unwrap_or_else(|panic| Answer::panicked(&panic.to_string())) };
        let known = answer.boxed().shared();
        state.known.insert(task, known.clone());
        state.order.push_back((now, task));
        known
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    };

    use super::*;

    fn work(count: &Arc<AtomicU32>) -> impl Future<Output = Answer> + Send + 'static {
        let count = count.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            count.fetch_add(1, SeqCst);
            Answer::panicked("x")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retried_task_runs_once_after_a_disconnect() {
        let (tasks, count, task) = (Tasks::default(), Arc::default(), (Uuid::from_u128(1), [1; 32]));
        drop(tasks.once(task, work(&count)));
        tasks.once(task, work(&count)).await;
        tasks.once(task, work(&count)).await;
        assert_eq!(count.load(SeqCst), 1);
        tasks.once((Uuid::from_u128(2), [1; 32]), work(&count)).await;
        assert_eq!(count.load(SeqCst), 2);
        tasks.once((Uuid::from_u128(1), [2; 32]), work(&count)).await;
        assert_eq!(count.load(SeqCst), 3, "a different command is carried out");
    }

    #[tokio::test(start_paused = true)]
    async fn stored_tasks_are_bounded_in_number_and_age() {
        let (tasks, count) = (Tasks::default(), Arc::default());
        for n in 0..MAX_TASKS as u128 + 50 {
            drop(tasks.once((Uuid::from_u128(n), [0; 32]), work(&count)));
        }
        assert!(tasks.state.lock().known.len() <= MAX_TASKS);
        tokio::time::sleep(MAX_AGE + Duration::from_secs(1)).await;
        drop(tasks.once((Uuid::from_u128(7), [0; 32]), work(&count)));
        assert_eq!(tasks.state.lock().known.len(), 1);
    }
}
