//! `loadtest flood`: a load made of its options, and what is told of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::report::over_time::OverTime;
use crate::report::svg::number;
use crate::report::{Page, Section, Verdict, facts};

use super::client::{self, Beat, Load, Pace, Target, Tls, Transfer};
use super::letters::{Letters, Sizes, Spread};
use super::record::{MAX_MESSAGES, Zero};
use super::{Summary, drive, more_descriptors};

/// Options of `loadtest flood`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    loadtest flood --to 127.0.0.1:2525 --messages 10000\n  \
    loadtest flood --to 127.0.0.1:2525 --rate 500 --time 60 --size 1KiB:5,10KiB:4,100KiB:1\n  \
    loadtest flood --to 127.0.0.1:1587 --tls starttls --user app --password-file pw --domains 1000 --zipf 1")]
pub(crate) struct FloodOptions {
    /// The relay's address.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Ends after so many messages.
    #[arg(long, default_value_t = MAX_MESSAGES)]
    messages: u32,
    /// Ends after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    time: Option<f64>,
    /// Connections at once.
    #[arg(long, default_value_t = 100)]
    sessions: usize,
    /// Messages a second (open loop); unless given, each session sends as fast as it is answered.
    #[arg(long)]
    rate: Option<f64>,
    /// So many messages begin at once, as often as makes the rate.
    #[arg(long, value_name = "MESSAGES", requires = "rate")]
    burst: Option<u32>,
    /// Octets of a message, or sizes by weight: 1KiB:50,10KiB:40,1MiB:10.
    #[arg(long, default_value = "10KiB")]
    size: Sizes,
    /// Messages go to d0.SUFFIX, d1.SUFFIX, …, so many domains.
    #[arg(long, default_value_t = 1)]
    domains: usize,
    /// What these domains end in.
    #[arg(long, default_value = "load.test")]
    suffix: String,
    /// Zipf's exponent: how unevenly messages are spread over domains; 0 is evenly.
    #[arg(long, default_value_t = 0.0)]
    zipf: f64,
    /// Recipients of each message, all at one domain.
    #[arg(long, default_value_t = 1)]
    recipients: u32,
    /// MAIL FROM and From.
    #[arg(long, default_value = "load@sender.test")]
    from: String,
    /// Messages of a session, after which it connects anew.
    #[arg(long, default_value_t = 1_000_000)]
    per_session: u32,
    /// How messages are transferred.
    #[arg(long, value_enum, default_value_t = Transfer::Pipelined)]
    transfer: Transfer,
    /// How connections are protected. Certificates are not verified.
    #[arg(long, value_enum, default_value_t = Tls::Off)]
    tls: Tls,
    /// Logs in by AUTH PLAIN.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// The password, in a file.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Write a report with plots, a page of HTML that needs no other file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the plots, SVG files, into this folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

impl Summary {
    /// For a report.
    fn figures(&self) -> Vec<(String, String)> {
        let ms = |ms: f64| format!("{} ms", number(ms));
        [
            ("messages", number(self.messages as f64)),
            ("accepted", number(self.accepted as f64)),
            ("messages a second", number(self.per_second.round())),
            ("refused", number(self.refused as f64)),
            ("recipients refused", number(self.recipients_refused as f64)),
            ("unanswered", number(self.unanswered as f64)),
            (
                "refused or unanswered, the longest",
                ms(self.longest_not_accepted_ms),
            ),
            ("begin to reply, p50", ms(self.transaction_ms.p50)),
            ("begin to reply, p99", ms(self.transaction_ms.p99)),
            ("end of data to reply, p50", ms(self.end_of_data_ms.p50)),
            ("end of data to reply, p99", ms(self.end_of_data_ms.p99)),
        ]
        .map(|(name, figure)| (name.to_owned(), figure))
        .into()
    }
}

/// Floods; false where not everything was accepted.
pub(crate) fn flood(options: &FloodOptions) -> anyhow::Result<bool> {
    more_descriptors()?;
    ensure!(
        options.time.is_some() || options.messages < MAX_MESSAGES,
        "an end: --messages or --time"
    );
    ensure!(
        (1..=100).contains(&options.recipients),
        "from 1 to 100 recipients"
    );
    let beat = match (options.rate, options.burst) {
        (None, _) => Beat::AsAnswered,
        (Some(rate), None) => Beat::Rate(rate),
        (Some(rate), Some(of)) => Beat::Bursts {
            of,
            every: Duration::try_from_secs_f64(f64::from(of) / rate).context("--burst and --rate")?,
        },
    };
    let pace = Pace {
        sessions: options.sessions,
        beat,
        messages: options.messages,
        time: options
            .time
            .map(Duration::try_from_secs_f64)
            .transpose()
            .context("--time")?,
        per_session: options.per_session,
    };
    client::check(&pace)?;
    let spread = Spread::zipf(options.domains, options.zipf, &options.suffix)?;
    let letters = Letters::new(
        StdRng::from_os_rng().random(),
        &options.from,
        options.size.clone(),
        spread,
    )
    .with_recipients(options.recipients);
    let mut target = Target::plain(options.to)?;
    target.tls = options.tls;
    target.transfer = options.transfer;
    if let (Some(user), Some(file)) = (&options.user, &options.password_file) {
        let password = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        target.login = Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let load = Load::new(Arc::new(letters), target, pace, Zero::now(), 0);
    let length = pace.time.is_none().then_some(u64::from(options.messages));
    // A session that gave up is told of after what there was until then.
    let ended = drive(&load, length, || Ok(()));
    let sent = load.sent.all();
    let summary = Summary::of(&load, &sent);
    let section = Section {
        title: "flood".to_owned(),
        about: format!("To {}.", options.to),
        verdict: Verdict::of(ended.is_ok() && summary.accepted == summary.messages as u64),
        figures: summary.figures(),
        findings: ended
            .as_ref()
            .err()
            .map(|error| format!("{error:#}"))
            .into_iter()
            .collect(),
        plots: OverTime::of(load.began(), &sent, &[], |_| true).plots(),
    };
    let page = Page {
        title: "Postrider: a flood".to_owned(),
        facts: facts(),
        sections: vec![section],
        ..Page::default()
    };
    if options.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        println!("{summary}");
    }
    page.write(options.report.as_deref(), options.plots.as_deref())?;
    ended?;
    Ok(summary.accepted == summary.messages as u64)
}
