//! `ringfence top`: hosts, storages, VMs that are not as wanted, fences under way and events, live in a terminal.
//!
//! ```text
//! feed    asks the controller and follows its events; goes on trying when it is away
//! state   what is known and what keys do: plain
//! view    draws the state: plain
//! ```
//! Invariant: the terminal is given back as it was, however this ends: a key, a signal, an error, a panic.

mod feed;
mod state;
mod view;

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::{client::Server, listen::shutdown_signal};
use state::{Effect, State};

/// Between two pictures on which nothing but a clock moves.
const SECOND: Duration = Duration::from_secs(1);

/// News that wait for the screen. A feed that is faster than the terminal waits.
const MAX_NEWS: usize = 1024;

/// Runs until somebody leaves; the exit code.
pub async fn run(server: &Server) -> u8 {
    if !std::io::stdout().is_terminal() {
        eprintln!("error: top draws on a terminal, and standard output is none. For scripts: ringfence status --json");
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

/// Gives the terminal back when it is dropped; a panic's hook does the same before it tells.
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
    // Heard from the first moment on: a signal must not meet a terminal that nobody restores.
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
                    // One question at a time: another key while it is answered asks nothing.
                    Effect::Explain(name) => drop(questions.try_send(name)),
                    Effect::None => {}
                },
                // A resize too is drawn at once.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            update = updates.recv() => {
                let Some(update) = update else { return Err(std::io::Error::other("the news ended")) };
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
