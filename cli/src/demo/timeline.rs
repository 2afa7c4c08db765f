//! The demo's output: one line for each observed step, and a spinner for the current one.

use std::{future::Future, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use ringfence_messages::Result;
use tokio::time::Instant;

use crate::output::print;

/// The demo's output; without a terminal there is no spinner.
pub(super) struct Timeline {
    began: Instant,
    spinner: ProgressBar,
    seen: usize,
}

impl Timeline {
    /// Starts the clock.
    pub(super) fn begin() -> Timeline {
        let spinner = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:.cyan} {elapsed:>4}  {msg}");
        spinner.set_style(style.expect("a constant template"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        Timeline { began: Instant::now(), spinner, seen: 0 }
    }

    /// Waits for one step and prints its result.
    ///
    /// # Errors
    /// The error of the step.
    pub(super) async fn step<T>(
        &mut self,
        waiting_for: &str,
        step: impl Future<Output = Result<T>>,
        tell: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        self.spinner.set_message(waiting_for.to_owned());
        let result = step.await;
        match &result {
            Ok(seen) => {
                self.seen += 1;
                self.line("ok  ", &tell(seen));
            }
            Err(_) => self.line("FAIL", waiting_for),
        }
        result
    }

    /// Prints a line without waiting.
    pub(super) fn note(&self, text: &str) {
        self.line("    ", text);
    }

    /// Number of observed steps.
    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    /// Removes the spinner.
    pub(super) fn end(&self) {
        self.spinner.finish_and_clear();
    }

    fn line(&self, mark: &str, text: &str) {
        let at = self.began.elapsed().as_secs_f64();
        self.spinner.suspend(|| print(format!("{at:>6.2} s  {mark}  {text}")));
    }
}
