//! The configuration: as written (TOML, [`source`]), read key by key ([`section`]), then as proven ([`Settings`]).
//!
//! Start, reload and `postrider check` share [`load`]: it tells every mistake it finds, each with its place, and gives
//! settings only if there is none.

pub mod admin;
mod check;
mod delivery;
pub mod effective;
pub mod egress;
pub mod limits;
mod listeners;
pub mod rates;
pub mod rewrites;
pub mod routes;
mod section;
pub mod settings;
mod shaping;
pub mod smart_hosts;
mod source;
pub mod streams;
pub mod warm_up;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

pub use settings::Settings;
pub use source::Problem;

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Mistakes(pub Vec<Problem>);

impl fmt::Display for Mistakes {
    /// A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.0.iter().peekable();
        while let Some(problem) = lines.next() {
            write!(f, "{problem}")?;
            if lines.peek().is_some() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Reads and checks the configuration in `path`, with all that it includes.
pub fn load(path: &Path) -> Result<Settings, Mistakes> {
    let (settings, problems, _) = load_with_keys(path);
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(Mistakes(problems)),
    }
}

/// As [`load`], for a relay that is to run on this machine: sources that can't be used here are mistakes.
pub fn load_here(path: &Path) -> Result<Settings, Mistakes> {
    let settings = load(path)?;
    let problems = egress::not_here(
        &settings,
        crate::delivery::resolver::is_here,
        egress::has_interface,
    );
    match problems.is_empty() {
        true => Ok(settings),
        false => Err(Mistakes(problems)),
    }
}

/// Settings as far as they can be told, with what is wrong: for commands that need one of them, and may be there to mend the
/// rest. `None` where what is wrong leaves too little.
pub fn look(path: &Path) -> (Option<Settings>, Mistakes) {
    let (settings, problems, _) = load_with_keys(path);
    (settings, Mistakes(problems))
}

/// As [`load`], with every key that was looked for: what a configuration can say.
fn load_with_keys(path: &Path) -> (Option<Settings>, Vec<Problem>, BTreeSet<String>) {
    let (files, root, problems) = source::read(path);
    let unread = problems.iter().any(|problem| problem.line == 0);
    let check = section::Check::new(&files, problems, path);
    // What a file that could not be read might say is not missed.
    let settings = if unread {
        None
    } else {
        check::settings(&check, root)
    };
    let (problems, known) = check.into_problems();
    (settings, problems, known)
}

/// What the configuration in `path` could say, by the tables that it has: lists as `[]`, names of tables as `NAME`.
pub fn known_keys(path: &Path) -> BTreeSet<String> {
    load_with_keys(path).2
}

/// Whether a name may stand in keys, labels and paths.
#[cfg(test)]
pub(crate) fn is_name(name: &str) -> bool {
    check::is_name(name)
}

/// Reads a length of time as the configuration does: `30m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    section::duration(text)
}

#[cfg(test)]
mod tests;
