//! `postrider queue verify`, `export` and `import`: a store that no relay has open.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use queue::stream::{Counts, LeftOut};
use queue::{Closed, ImportError, Imported, OpenError, Options, Problem, Queue, Verified};
use serde_json::json;

use super::output::{columns, plain, print, print_json, size};
use super::queue::block_on;
use super::{ConfigFile, Failure};
use crate::world::{Clock, Random};

/// Octets of a stream held back for one write or read.
const BUFFER: usize = 1 << 20;

/// Problems that `verify --json` shows; it counts all.
const SHOWN: usize = 10_000;

/// Which store.
#[derive(clap::Args)]
pub(super) struct StoreFolder {
    /// The store's folder; unless given, `store.path` of the configuration.
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

impl StoreFolder {
    /// The folder, and the bounds of a queue in it.
    fn find(&self) -> Result<(PathBuf, Options), Failure> {
        if let Some(folder) = &self.store {
            return Ok((folder.clone(), Options::default()));
        }
        let settings = self.config.load()?;
        let options = settings.queue_options();
        Ok((settings.store.path, options))
    }

    fn open(&self, salvage: bool) -> Result<(PathBuf, Closed), Failure> {
        let (folder, _) = self.find()?;
        let opened = Closed::open(&folder, salvage);
        let closed = opened.with_context(|| format!("the queue in {}", folder.display()))?;
        if let Some(refused) = closed.refused() {
            eprintln!("{refused}\nIt was put together from its tables instead.");
        }
        Ok((folder, closed))
    }
}

/// Reads all of a store, prints what is wrong with it, and counts what it holds.
pub(super) fn verify(store: &StoreFolder, as_json: bool) -> Result<(), Failure> {
    let (folder, closed) = store.open(true)?;
    let mut shown = Vec::new();
    let mut broken = Ok(());
    let verified = closed.verify(&mut |problem| {
        if !as_json {
            broken = std::mem::replace(&mut broken, Ok(())).and_then(|()| print(&line(&problem)));
        } else if shown.len() < SHOWN {
            shown.push(problem);
        }
    })?;
    broken?;
    let behind = closed.behind().map(OpenError::to_string);
    let refused = closed.refused().map(ToString::to_string);
    let is_sound = verified.problems() == 0 && behind.is_none() && refused.is_none();
    if as_json {
        print_json(&json!({
            "ok": is_sound,
            "messages": verified.messages,
            "units": verified.units,
            "set_aside": verified.aside,
            "families": verified.families.iter().map(|family| json!({
                "family": family.family.name(),
                "records": family.records,
                "bytes": family.bytes,
                "problems": family.problems,
            })).collect::<Vec<_>>(),
            "behind_its_mark": behind,
            "does_not_open": refused,
            "problems": shown.iter().map(|problem| json!({
                "family": problem.family.name(),
                "key": hex(&problem.key),
                "what": problem.what,
            })).collect::<Vec<_>>(),
        }))?;
    } else {
        print(&table(&verified))?;
    }
    if let Some(behind) = behind {
        return Err(anyhow::anyhow!("{}: {behind}", folder.display()).into());
    }
    if is_sound {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "{}: {} problems. What verifies can be taken out: postrider queue export --salvage",
        folder.display(),
        verified.problems()
    )
    .into())
}

fn line(problem: &Problem) -> String {
    let (family, key) = (problem.family.name(), hex(&problem.key));
    format!("{family}, key {key}: {}\n", plain(&problem.what))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn table(verified: &Verified) -> String {
    let mut rows = vec![["FAMILY", "RECORDS", "SIZE", "PROBLEMS"].map(String::from)];
    rows.extend(verified.families.iter().map(|family| {
        [
            family.family.name().to_owned(),
            family.records.to_string(),
            size(family.bytes),
            family.problems.to_string(),
        ]
    }));
    let Verified {
        messages,
        units,
        aside,
        ..
    } = verified;
    format!(
        "{}{messages} messages; {units} units wait, {aside} are set aside; {} problems\n",
        columns(&rows),
        verified.problems()
    )
}

/// Writes all messages to `out`, or to standard output.
pub(super) fn export(
    store: &StoreFolder,
    out: Option<&Path>,
    salvage: bool,
    as_json: bool,
) -> Result<(), Failure> {
    if out.is_none() && io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "a stream of messages is nothing for a terminal: write it to a file with --output FILE, or to a pipe".into(),
        ));
    }
    let (folder, closed) = store.open(salvage)?;
    match closed.behind() {
        Some(behind) if !salvage => {
            let text = format!(
                "{}: {behind}. To take out what is there: --salvage",
                folder.display()
            );
            return Err(anyhow::anyhow!(text).into());
        }
        _ => {}
    }
    let now = Clock::system().now();
    let stream = *Random::system().message_id(now).as_bytes();
    let header = (stream, env!("CARGO_PKG_VERSION"), now);
    let mut tell = |left_out: &LeftOut| eprintln!("left out: {}", left_out_line(left_out));
    let exported = match out {
        None => closed.export(
            BufWriter::with_capacity(BUFFER, io::stdout().lock()),
            header,
            &mut tell,
        ),
        Some(path) => {
            // Nothing that is there is written over: it may be the only copy.
            let file = File::create_new(path).with_context(|| path.display().to_string())?;
            let exported = closed.export(BufWriter::with_capacity(BUFFER, &file), header, &mut tell);
            exported.and_then(|exported| {
                file.sync_all()?;
                Ok(exported)
            })
        }
    };
    let exported = match exported {
        Ok(exported) => exported,
        Err(error) if salvage => return Err(error.into()),
        Err(error) => {
            return Err(anyhow::Error::from(error)
                .context("not all could be read; what can be: --salvage")
                .into());
        }
    };
    let told = if as_json {
        let counts = counts(&exported.counts);
        let report =
            json!({ "ok": exported.is_whole(), "behind_its_mark": exported.behind, "exported": counts });
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        let Counts {
            messages,
            units,
            bytes,
            suspensions,
            ..
        } = exported.counts;
        format!(
            "{messages} messages ({units} units, {}) and {suspensions} suspensions are in the stream\n",
            size(bytes)
        )
    };
    match out {
        Some(_) => print(&told)?,
        None => eprint!("{told}"),
    }
    if exported.behind {
        return Err(anyhow::anyhow!(
            "the store ends before what it had acknowledged: what came after is lost"
        )
        .into());
    }
    match exported.counts.left_out {
        0 => Ok(()),
        left_out => {
            Err(anyhow::anyhow!("{left_out} entries do not verify, and are not in the stream").into())
        }
    }
}

fn counts(counts: &Counts) -> serde_json::Value {
    json!({
        "messages": counts.messages,
        "units": counts.units,
        "bytes": counts.bytes,
        "suspensions": counts.suspensions,
        "left_out": counts.left_out,
    })
}

fn left_out_line(LeftOut { id, unit, what }: &LeftOut) -> String {
    let what = plain(what);
    match (id, unit) {
        (Some(id), Some(unit)) => format!("message {id}, unit {unit}: {what}"),
        (Some(id), None) => format!("message {id}: {what}"),
        (None, _) => what,
    }
}

/// Puts the messages of a stream into a store, which is made if it is not there.
pub(super) fn import(
    store: &StoreFolder,
    stream: Option<&Path>,
    lost_by_mx: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let input: Box<dyn Read> = match stream {
        Some(path) => Box::new(File::open(path).with_context(|| path.display().to_string())?),
        None if io::stdin().is_terminal() => {
            return Err(Failure::Usage(
                "name the stream's file, or give it on standard input: postrider queue import FILE".into(),
            ));
        }
        None => Box::new(io::stdin().lock()),
    };
    let (folder, options) = store.find()?;
    let queue =
        Queue::open(&folder, &options).with_context(|| format!("the queue in {}", folder.display()))?;
    let mut tell = |left_out: &LeftOut| eprintln!("not in the stream: {}", left_out_line(left_out));
    let input = BufReader::with_capacity(BUFFER, input);
    let imported = block_on(queue.import(input, Clock::system().now(), lost_by_mx, &mut tell));
    queue.close();
    drop(queue);
    let imported = imported?.map_err(|error| explain(error, &folder))?;
    if as_json {
        return Ok(print_json(&json!({
            "messages": imported.messages,
            "units": imported.units,
            "taken_in_before": imported.before,
            "already_there": imported.already_there,
            "suspensions": imported.suspensions,
            "exported": counts(&imported.counts),
        }))?);
    }
    Ok(print(&summary(&imported))?)
}

fn summary(imported: &Imported) -> String {
    let mut text = format!(
        "{} messages ({} units) and {} suspensions were taken in\n",
        imported.messages, imported.units, imported.suspensions
    );
    for (count, what) in [
        (imported.before, "had been taken in by an earlier run"),
        (imported.already_there, "are in this store already"),
        (
            imported.counts.left_out,
            "entries did not verify when the stream was made",
        ),
    ] {
        if count > 0 {
            text.push_str(&format!("{count} {what}\n"));
        }
    }
    text
}

fn explain(error: ImportError, folder: &Path) -> anyhow::Error {
    let kept = "what came before is in the store; import the whole stream again to go on from there";
    match error {
        ImportError::Stream(error) => error.into(),
        error => anyhow::Error::from(error).context(format!("the queue in {}: {kept}", folder.display())),
    }
}
