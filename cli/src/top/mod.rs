//! `ringfence top`: a live view of hosts, storages, VMs off their desired state, fences and events.
//!
//! ```text
//! feed    polls the controller and follows its events; reconnects
//! state   data and key bindings: pure
//! view    draws the state: pure
//! ```
//! Invariant: the terminal is restored at the end, whether by a key, a signal, an error or a panic.

mod feed;
mod state;
mod view;

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt;
use ringfence_service::listen::shutdown_signal;
use tokio::sync::mpsc;

use crate::client::Server;
use state::{Effect, State};

/// Time between two frames without updates. Too low: needless work. Too high: clocks stand still.
const SECOND: Duration = Duration::from_secs(1);

/// Queued updates; a feed that is faster than the terminal waits.
const MAX_NEWS: usize = 1024;

/// Runs until the user quits. Returns the exit status.
pub async fn run(server: &Server) -> u8 {
    if !std::io::stdout().is_terminal() {
        eprintln!("error: standard output is not a terminal; use `ringfence status --json` in scripts");
        return 2;
    }
    let client = match server.client() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("{}", crate::output::error(&error));
            return 1;
        }
    };
    let (news, mut updates) = mpsc::channel(MAX_NEWS);
    let (questions, asked) = mpsc::channel(1);
    let feed = tokio::spawn(feed::run(client, news, asked));
    let ended = show(server.url(), &mut updates, &questions).await;
    feed.abort();
    match ended {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: the terminal: {error}");
            1
        }
    }
}

/// Restores the terminal when dropped; the panic hook does the same before it reports.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn show(
    server: &str,
    updates: &mut mpsc::Receiver<state::Update>,
    questions: &mpsc::Sender<String>,
) -> std::io::Result<()> {
    // Registered first: a signal must not leave the terminal raw.
    let mut end = std::pin::pin!(shutdown_signal());
    let _ = futures_util::poll!(&mut end);
    let mut terminal = ratatui::try_init()?;
    let _restore = Restore;
    let mut keys = EventStream::new();
    let mut clock = tokio::time::interval(SECOND);
    let mut state = State::new(server, Instant::now());
    loop {
        terminal.draw(|frame| view::draw(frame, &state, Instant::now()))?;
        tokio::select! {
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => match state.key(key) {
                    Effect::Quit => return Ok(()),
                    // One explanation at a time: further keys are ignored until its answer.
                    Effect::Explain(name) => drop(questions.try_send(name)),
                    Effect::None => {}
                },
                // A resize is drawn immediately too.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            update = updates.recv() => {
                let Some(update) = update else { return Err(std::io::Error::other("the feed ended")) };
                state.update(update, Instant::now());
                while let Ok(update) = updates.try_recv() {
                    state.update(update, Instant::now());
                }
            }
            _ = clock.tick() => {}
            () = &mut end => return Ok(()),
        }
    }
}
