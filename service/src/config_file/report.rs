//! Prints the errors of a configuration file.

use std::io::IsTerminal;

use super::Problems;

/// Columns of a diagnostic without a terminal.
const WIDTH: usize = 120;

/// Prints the errors of a file to standard error.
pub fn report(problems: &Problems) {
    let fancy = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    eprint!("{}", problems.render(fancy, WIDTH));
    let count = problems.count();
    eprintln!("{count} error{}; nothing was applied", if count == 1 { "" } else { "s" });
}
