//! What the story runners share: a story is played in the simulated world, and the lines that carry it are explained.
#![allow(clippy::print_stdout)]

use ringfence_sim::scenario::Scenario;

/// A line of the log, known by these words, and what it means.
pub(crate) struct Moment(pub(crate) &'static [&'static str], pub(crate) &'static str);

/// Plays the story and tells it.
///
/// # Errors
/// What is wrong with the story, a rule that was broken, an expectation that was not met, or a moment that never came.
pub(crate) fn tell(story: &str, moments: &[Moment]) -> Result<(), String> {
    let scenario = Scenario::parse(story)?;
    println!("{}\n", scenario.title);
    let played = scenario.play();
    let mut lines = played.outcome.log.iter();
    for Moment(words, meaning) in moments {
        let line = lines.find(|line| words.iter().all(|word| line.contains(word)));
        let line = line.ok_or_else(|| format!("{words:?} never came, or not in its order"))?;
        println!("{line}\n{:>11} {meaning}\n", "");
    }
    if !played.failures.is_empty() {
        return Err(played.failures.join("\n"));
    }
    println!("no rule was broken");
    Ok(())
}
