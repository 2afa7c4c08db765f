//! Shared by the programs that play a story: runs it in the simulated world and explains its main lines.
#![allow(clippy::print_stdout)]

use ringfence_sim::scenario::Scenario;

/// A line of the log with these words, and its explanation.
pub(crate) struct Moment(pub(crate) &'static [&'static str], pub(crate) &'static str);

/// Plays the story and prints its moments.
///
/// # Errors
/// A malformed story, a broken rule, a failed expectation, or a missing moment.
pub(crate) fn tell(story: &str, moments: &[Moment]) -> Result<(), String> {
    let scenario = Scenario::parse(story)?;
    println!("{}\n", scenario.title);
    let played = scenario.play();
    let mut lines = played.outcome.log.iter();
    for Moment(words, meaning) in moments {
        let line = lines.find(|line| words.iter().all(|word| line.contains(word)));
        let line = line.ok_or_else(|| format!("moment {words:?} is missing or out of sequence"))?;
        println!("{line}\n{:>11} {meaning}\n", "");
    }
    if !played.failures.is_empty() {
        return Err(played.failures.join("\n"));
    }
    println!("no rule was broken");
    Ok(())
}
