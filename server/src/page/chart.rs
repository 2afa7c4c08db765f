//! Charts: SVG in the page, each with a table of the same numbers.
//!
//! Invariants: the table has everything that the chart has; colours come from the style sheet, for light and dark,
//! and each has a shape or a word beside it; no inline styles, which the content security policy forbids.
//! Alternatives considered: docs/adr/0009.

use jiff::Timestamp;
use maud::{Markup, html};
use ringfence_messages::host::Pinged;

use super::layout::columns;

/// A named span of time.
pub(super) struct Phase {
    pub(super) what: &'static str,
    pub(super) from: Timestamp,
    /// None while it lasts, or if its end has no record.
    pub(super) to: Option<Timestamp>,
}

const WIDTH: f64 = 720.0;
/// Width of the column of names.
const NAMES: f64 = 210.0;
/// Width of the column of durations.
const TIMES: f64 = 80.0;
const ROW: f64 = 26.0;
/// Least width of a bar, so that a phase without duration is visible.
const MIN_BAR: f64 = 3.0;

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    (to.as_millisecond() - from.as_millisecond()) as f64 / 1000.0
}

fn took(phase: &Phase) -> String {
    phase.to.map_or_else(|| "in progress".to_owned(), |to| format!("{:.3} s", seconds(phase.from, to)))
}

/// Phases one below the other, with their durations as lengths.
pub(super) fn phases(phases: &[Phase]) -> Markup {
    let (Some(first), Some(last)) = (phases.first(), phases.last()) else { return html! {} };
    let end = last.to.unwrap_or(last.from);
    let whole = seconds(first.from, end).max(0.001);
    let bars = WIDTH - NAMES - TIMES;
    let x = |time: Timestamp| NAMES + seconds(first.from, time) / whole * bars;
    let height = ROW * phases.len() as f64 + 24.0;
    let clock = |time: Timestamp| time.strftime("%H:%M:%S%.3f").to_string();
    html! {
        figure.chart {
            svg role="img" viewBox={ "0 0 " (WIDTH) " " (height) }
                aria-label={ "Phases over " (format!("{whole:.3}")) " s; the table below has the same" } {
                @for tick in 0..=4 {
                    @let at = NAMES + bars * f64::from(tick) / 4.0;
                    line.grid x1=(at) x2=(at) y1="0" y2=(height - 20.0) {}
                    text.axis x=(at) y=(height - 5.0) text-anchor="middle" {
                        (format!("{:.2} s", whole * f64::from(tick) / 4.0))
                    }
                }
                @for (row, phase) in phases.iter().enumerate() {
                    @let top = row as f64 * ROW;
                    @let (left, right) = (x(phase.from), x(phase.to.unwrap_or(end)));
                    @let right = right.max(left + MIN_BAR);
                    text x="0" y=(top + 17.0) { (phase.what) }
                    rect class=(if phase.to.is_some() { "bar" } else { "bar open" })
                        x=(format!("{left:.1}")) y=(top + 4.0)
                        width=(format!("{:.1}", right - left)) height=(ROW - 8.0) rx="3" {}
                    text.axis x=(format!("{:.1}", right + 6.0)) y=(top + 17.0) { (took(phase)) }
                }
            }
            table {
                caption { "Phases" }
                (columns(["Phase", "From", "To", "Duration"]))
                tbody {
                    @for phase in phases {
                        tr {
                            th scope="row" { (phase.what) }
                            td { time datetime=(phase.from) { (clock(phase.from)) } }
                            td { @if let Some(to) = phase.to { time datetime=(to) { (clock(to)) } } @else { "-" } }
                            td.number { (took(phase)) }
                        }
                    }
                }
            }
        }
    }
}

fn millis(us: u32) -> String {
    format!("{:.1} ms", f64::from(us) / 1000.0)
}

/// Height of the bars of pings.
const PINGS_HEIGHT: f64 = 120.0;

/// Pings side by side, with their durations as heights; an unanswered ping is a cross.
pub(super) fn pings(pings: &[Pinged]) -> Markup {
    let Some(slowest) =
        pings.iter().filter(|of| of.answered).map(|of| of.took_us).max().or(Some(0)).filter(|_| !pings.is_empty())
    else {
        return html! { p { "No pings." } };
    };
    let mut answered: Vec<u32> = pings.iter().filter(|of| of.answered).map(|of| of.took_us).collect();
    answered.sort_unstable();
    let lost = pings.len() - answered.len();
    let median = answered.get(answered.len() / 2).map_or_else(|| "-".to_owned(), |us| millis(*us));
    let left = 70.0;
    let step = (WIDTH - left) / ringfence_actors::host::PINGS_KEPT as f64;
    let scale = f64::from(slowest.max(1));
    html! {
        figure.chart {
            svg role="img" viewBox={ "0 0 " (WIDTH) " " (PINGS_HEIGHT + 24.0) }
                aria-label={ "The last " (pings.len()) " pings; the tables below have the same" } {
                @for (part, at) in [(1.0, 8.0), (0.5, 8.0 + (PINGS_HEIGHT - 8.0) / 2.0), (0.0, PINGS_HEIGHT)] {
                    line.grid x1=(left) x2=(WIDTH) y1=(at) y2=(at) {}
                    text.axis x=(left - 6.0) y=(at + 4.0) text-anchor="end" { (millis((scale * part) as u32)) }
                }
                @for (n, ping) in pings.iter().enumerate() {
                    @let x = left + n as f64 * step;
                    @if ping.answered {
                        @let high = (f64::from(ping.took_us) / scale * (PINGS_HEIGHT - 8.0)).max(1.0);
                        rect.bar x=(format!("{:.1}", x + 1.0)) y=(format!("{:.1}", PINGS_HEIGHT - high))
                            width=(format!("{:.1}", step - 2.0)) height=(format!("{high:.1}")) {}
                    } @else {
                        text.lost x=(format!("{:.1}", x + step / 2.0)) y=(PINGS_HEIGHT - 4.0)
                            text-anchor="middle" { "\u{2715}" }
                    }
                }
                text.axis x=(left) y=(PINGS_HEIGHT + 18.0) { (pings[0].ago_s) " s ago" }
                text.axis x=(format!("{:.1}", left + (pings.len() as f64 - 1.0) * step)) y=(PINGS_HEIGHT + 18.0)
                    text-anchor=(if pings.len() > 8 { "end" } else { "start" }) {
                    @if pings.len() > 8 { (pings[pings.len() - 1].ago_s) " s ago" }
                }
            }
            table {
                caption { "The last " (pings.len()) " pings" }
                (columns(["Answered", "Unanswered", "Median", "Slowest"]))
                tbody { tr { td.number { (answered.len()) } td.number { (lost) } td.number { (median) }
                    td.number { (millis(slowest)) } } }
            }
            details {
                summary { "All pings" }
                table {
                    caption { "Pings, the newest first" }
                    (columns(["Ended", "Duration", "Answered"]))
                    tbody { @for ping in pings.iter().rev() {
                        tr { td.number { (ping.ago_s) " s ago" } td.number { (millis(ping.took_us)) }
                            td { @if ping.answered { "yes" } @else { "no" } } } } }
                }
            }
        }
    }
}
