//! Findings of a config file, on standard error.

use std::io::IsTerminal;

use super::Problems;

/// Columns of a diagnostic where there is no terminal to ask.
const WIDTH: usize = 120;

/// Says what is wrong with a file, on standard error.
pub fn report(problems: &Problems) {
    let fancy = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    eprint!("{}", problems.render(fancy, WIDTH));
    let count = problems.count();
    eprintln!("{count} mistake{}, nothing was done", if count == 1 { "" } else { "s" });
}
