//! Shell completions and manual pages, generated from the command line.

use std::path::Path;

use clap::CommandFactory;
use ringfence_messages::{Code, ErrorCode, Result};

use super::Cli;

/// Prints the completions of a shell.
pub(super) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringfence", &mut script);
    crate::output::print(String::from_utf8_lossy(&script).trim_end());
}

/// Writes `ringfence.1` and one page for each command.
///
/// # Errors
/// `SYS.1016` if they cannot be written.
pub(super) fn pages(dir: &Path) -> Result<()> {
    let failed =
        |e: std::io::Error| ErrorCode::new(Code::IO, format!("cannot write manual pages to {}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
}
