//! Reload: another configuration for a relay that runs, all of it or nothing, and no connection dropped for it.
//!
//! Everything that can fail is done first: the configuration is read and checked, files are read, ports are bound. Then it is
//! given to the workers, which can't fail. Certificates, keys and passwords are also looked at by content every
//! [`LOOK_EVERY`]: a file may be replaced, or a symbolic link on its path (as Kubernetes does with `..data`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::metrics::Registry;
use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use parking_lot::Mutex;
use prometheus::{Gauge, IntCounterVec, IntGaugeVec, Opts};
use rustls::ServerConfig;
use tokio::sync::mpsc;

use crate::config::settings::{Listener, ListenerKind, TlsFiles};
use crate::config::{self, Problem, Settings, egress, smart_hosts};
use crate::credentials::Credentials;
use crate::delivery::client_tls::ClientTls;
use crate::delivery::resolver::RealNet;
use crate::health::Health;
use crate::prepare::{self, Preparer};
use crate::routing::Routing;
use crate::submission::front::Front;
use crate::submission::listener::{self, Terms};
use crate::worker::{Change, DeliveryChange, ListenerKey};

/// How often certificates, keys and passwords are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a reload waits for each worker to go by it.
const TAKEN_WITHIN: Duration = Duration::from_secs(2);

/// Octets read of one of them.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Keys that are looked at once, when the relay starts. One that ends with a dot stands for all below it.
const AT_START_ONLY: [&str; 7] = [
    "store.path",
    "store.min_free",
    "store.commit_patience",
    "store.body_cache",
    "metrics.",
    "admin.",
    "log.format",
];

/// Where a change means that next hops are to be met anew.
const OF_CONNECTIONS: [&str; 11] = [
    "hostname",
    "bounce_",
    "delivery.",
    "destination",
    // Of a [[limit]] messages a connection, and recipients a transaction.
    "limit[",
    "provider",
    "smart_host",
    "source",
    // What a connection sends is put off by the waits it knows: longer ones than there are now are taken for a clock's that was ahead, and
    // the mail for due.
    "stream",
    "dns.",
    "safe_mode.",
];

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// A line for each key that is otherwise than before, and for each file with another content.
    pub changes: Vec<String>,
}

/// Why a reload did nothing.
#[derive(Debug)]
pub enum ReloadError {
    /// Of the configuration: all of them.
    Mistakes(Vec<Problem>),
    /// Of what it needs: a port that is taken, a store that does not answer.
    Failed(String),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mistakes(problems) => config::Mistakes(problems.clone()).fmt(f),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ReloadError {}

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    reloads: IntCounterVec,
    last_success: Gauge,
    expiry: IntGaugeVec,
}

impl Metrics {
    /// Makes and registers the series. The start counts as a success.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let reloads = IntCounterVec::new(
            Opts::new(
                "postrider_reloads_total",
                "Reloads by what set them off (config: an operator; files: a certificate, key or password with another content) \
                 and result (ok; refused: nothing changed, the log says why). Alert on any refused.",
            ),
            &["of", "result"],
        )?;
        for of in ["config", "files"] {
            for result in ["ok", "refused"] {
                reloads.with_label_values(&[of, result]);
            }
        }
        let last_success = Gauge::new(
            "postrider_last_reload_success_timestamp_seconds",
            "When the configuration in force was taken, in seconds since 1970.",
        )?;
        let expiry = IntGaugeVec::new(
            Opts::new(
                "postrider_certificate_expiry_timestamp_seconds",
                "When the certificate that listeners or the admin API show ends, in seconds since 1970, by file. Alert when \
                 that is near: it was not renewed.",
            ),
            &["file"],
        )?;
        registry.register(Box::new(reloads.clone()))?;
        registry.register(Box::new(last_success.clone()))?;
        registry.register(Box::new(expiry.clone()))?;
        let metrics = Self {
            reloads,
            last_success,
            expiry,
        };
        metrics.took();
        Ok(metrics)
    }

    /// The certificates in force.
    fn show(&self, settings: &Settings) {
        self.expiry.reset();
        for files in certificates(settings) {
            if let Some(at) = crate::tls::expiry(&files.certificate) {
                let file = files.certificate.display().to_string();
                self.expiry.with_label_values(&[&file]).set(at);
            }
        }
    }

    fn took(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.last_success.set(now.unwrap_or_default().as_secs_f64());
    }
}

/// What a reload changes.
pub struct Parts {
    /// What sessions share, now.
    pub front: Arc<Front>,
    /// TLS towards next hops, now.
    pub tls: Arc<ClientTls>,
    /// The listeners, now.
    pub listeners: Vec<Served>,
    /// To the workers, one each.
    pub workers: Vec<mpsc::UnboundedSender<Change>>,
    /// Signs.
    pub preparer: Preparer,
    /// The certificate of the admin API, where it has one.
    pub admin_certificate: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Says what safe mode does.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Metrics,
}

/// A listener at work.
#[derive(Clone)]
pub struct Served {
    /// What tells it apart.
    pub key: ListenerKey,
    /// Where it listens.
    pub address: SocketAddr,
    /// As configured.
    pub listener: Listener,
    /// The certificate, where there is one.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Served {
    /// What its workers go by.
    pub fn terms(&self, front: &Arc<Front>) -> Terms {
        Terms {
            front: front.clone(),
            listener: self.listener.clone(),
            tls: self.tls.clone(),
        }
    }
}

/// Each listener with what tells it apart.
pub fn keys(listeners: &[Listener]) -> Vec<(ListenerKey, &Listener)> {
    let mut numbers = HashMap::new();
    let key = |listener: &'_ Listener| {
        let number = numbers.entry(listener.address).or_insert(0);
        *number += 1;
        (listener.address, *number - 1)
    };
    let keys: Vec<_> = listeners.iter().map(key).collect();
    keys.into_iter().zip(listeners).collect()
}

/// See the module.
pub struct Reloader(Mutex<State>);

struct State {
    parts: Parts,
    contents: Contents,
    /// What the last look refused: told once, and tried again when it has changed.
    refused: Option<Contents>,
}

/// What certificates, keys and passwords hold, as SHA-256; `None`: not to be read.
type Contents = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// All that has to be there before anything is changed.
struct Prepared {
    settings: Arc<Settings>,
    front: Arc<Front>,
    tls: Arc<ClientTls>,
    admin_certificate: Option<Arc<ServerConfig>>,
    signer: dkim_signer::Signer,
    listeners: Vec<Served>,
    sockets: HashMap<ListenerKey, Vec<std::net::TcpListener>>,
    contents: Contents,
}

impl Reloader {
    /// Of a relay that has just started.
    pub fn new(parts: Parts) -> Self {
        let contents = contents(&parts.front.settings);
        parts.metrics.show(&parts.front.settings);
        Self(Mutex::new(State {
            parts,
            contents,
            refused: None,
        }))
    }

    /// The configuration in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.0.lock().parts.front.settings.clone()
    }

    /// What sessions share, now.
    pub fn front(&self) -> Arc<Front> {
        self.0.lock().parts.front.clone()
    }

    /// Where clients come in now.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        let state = self.0.lock();
        state
            .parts
            .listeners
            .iter()
            .map(|served| served.address)
            .collect()
    }

    /// Reads the configuration anew and goes by it, or tells every mistake and changes nothing. Blocks.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut state = self.0.lock();
        let done = state.reload();
        let metrics = &state.parts.metrics;
        match &done {
            Ok(reloaded) => {
                metrics.reloads.with_label_values(&["config", "ok"]).inc();
                metrics.took();
                tracing::info!(changes = reloaded.changes.len(), "configuration reloaded");
                for change in &reloaded.changes {
                    tracing::info!(change, "changed");
                }
            }
            Err(error) => {
                metrics.reloads.with_label_values(&["config", "refused"]).inc();
                tracing::error!(%error, "reload refused: nothing has changed");
            }
        }
        done
    }

    /// Looks whether certificates, keys or passwords hold something else, and goes by it if so. Blocks.
    pub fn look(&self) {
        let mut state = self.0.lock();
        let settings = state.parts.front.settings.clone();
        let now = contents(&settings);
        if now == state.contents || state.refused.as_ref() == Some(&now) {
            return;
        }
        let done = with_passwords_read_anew(&settings)
            .map_err(ReloadError::Failed)
            .and_then(|settings| state.prepare(settings))
            .map(|prepared| state.commit(prepared));
        let metrics = &state.parts.metrics;
        match done {
            Ok(reloaded) => {
                metrics.reloads.with_label_values(&["files", "ok"]).inc();
                for change in reloaded.changes {
                    tracing::info!(change, "files changed");
                }
            }
            Err(error) => {
                metrics.reloads.with_label_values(&["files", "refused"]).inc();
                tracing::error!(%error, "files changed and can't be used: what was read before stays in force");
                state.refused = Some(now);
            }
        }
    }
}

impl State {
    fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let before = &self.parts.front.settings.effective;
        let settings =
            config::load_here(before.file()).map_err(|config::Mistakes(all)| ReloadError::Mistakes(all))?;
        let fixed = settings_at_start_only(before, &settings);
        if !fixed.is_empty() {
            return Err(ReloadError::Mistakes(fixed));
        }
        let prepared = self.prepare(settings)?;
        Ok(self.commit(prepared))
    }

    /// Does all that can fail.
    fn prepare(&self, mut settings: Settings) -> Result<Prepared, ReloadError> {
        crate::descriptors::fit(&mut settings);
        crate::memory::fit(&mut settings);
        let settings = Arc::new(settings);
        let (old, failed) = (&self.parts.front, |why: String| ReloadError::Failed(why));
        // Before the files are read for use: whatever changes between is seen by the next look.
        let contents = contents(&settings);
        let signer = prepare::load_keys(&settings.dkim).map_err(|wrong| {
            let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
            failed(wrong.join("\n"))
        })?;
        let ca_file = settings.delivery.ca_file.as_ref();
        let same_authorities = ca_file == old.settings.delivery.ca_file.as_ref()
            && ca_file.is_none_or(|file| contents.get(file) == self.contents.get(file));
        let tls = match same_authorities {
            true => self.parts.tls.clone(),
            false => Arc::new(
                ClientTls::new(ca_file.map(PathBuf::as_path))
                    .map_err(|error| failed(format!("{error:#}")))?,
            ),
        };
        if settings.dns != old.settings.dns {
            // Each worker makes its own; that it can be made is seen here.
            RealNet::new(&settings.dns, settings.delivery.timeouts.dns)
                .map_err(|error| failed(format!("dns: {error:#}")))?;
        }
        let routing = Routing::open(settings.clone(), &old.queue)
            .map_err(|error| failed(format!("the routes can't be kept: {error}")))?;
        let credentials = match &settings.credentials_file {
            Some(file) if settings.credentials_file == old.settings.credentials_file => {
                match &old.credentials {
                    Some(same) => Some(same.clone()),
                    None => Some(Credentials::open(file).map_err(|error| failed(error.to_string()))?),
                }
            }
            Some(file) => Some(Credentials::open(file).map_err(|error| failed(error.to_string()))?),
            None => None,
        };
        let admin_files = settings.admin.http.as_ref().and_then(|http| http.tls.as_ref());
        let admin_certificate = admin_files
            .map(crate::tls::http_config)
            .transpose()
            .map_err(|error| failed(format!("{error:#}")))?;
        let (listeners, sockets) = self.listeners(&settings, &contents)?;
        Ok(Prepared {
            front: Arc::new(old.renewed(settings.clone(), credentials, Arc::new(routing))),
            settings,
            tls,
            admin_certificate,
            signer,
            listeners,
            sockets,
            contents,
        })
    }

    /// The listeners that are to be, with the sockets of those that are new.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn listeners(
        &self,
        settings: &Settings,
        contents: &Contents,
    ) -> Result<(Vec<Served>, HashMap<ListenerKey, Vec<std::net::TcpListener>>), ReloadError> {
        let failed = |error: anyhow::Error| ReloadError::Failed(format!("{error:#}"));
        let (mut all, mut sockets) = (Vec::new(), HashMap::new());
        for (key, listener) in keys(&settings.listeners) {
            let old = self.parts.listeners.iter().find(|served| served.key == key);
            // A certificate with the same content stays, with the TLS sessions it can resume.
            let same = |served: &&Served| {
                let files = tls_files(&served.listener.kind);
                let same = |file: &PathBuf| contents.get(file) == self.contents.get(file);
                files.is_some()
                    && files == tls_files(&listener.kind)
                    && files.is_some_and(|files| same(&files.certificate) && same(&files.key))
            };
            let tls = match self.parts.listeners.iter().find(same) {
                Some(same) => same.tls.clone(),
                None => listener::certificate(listener).map_err(failed)?,
            };
            let address = match old {
                Some(old) => old.address,
                None => {
                    let (address, bound) =
                        listener::bind(listener.address, self.parts.workers.len()).map_err(failed)?;
                    sockets.insert(key, bound);
                    address
                }
            };
            all.push(Served {
                key,
                address,
                listener: listener.clone(),
                tls,
            });
        }
        Ok((all, sockets))
    }

    /// Goes by what was prepared. Can't fail.
    fn commit(&mut self, prepared: Prepared) -> Reloaded {
        let Prepared {
            settings,
            front,
            tls,
            admin_certificate,
            signer,
            listeners,
            mut sockets,
            contents,
        } = prepared;
        let before = std::mem::replace(&mut self.parts.front, front.clone());
        let keys = before.settings.effective.changes(&settings.effective);
        let files: Vec<_> = contents
            .iter()
            .filter(|(file, content)| self.contents.get(*file).is_some_and(|old| old != *content))
            .map(|(file, _)| file.clone())
            .collect();
        let is_of = |file: &PathBuf| is_of_connections(&settings, file);
        let of_connections = |key: &str| OF_CONNECTIONS.iter().any(|of| key.starts_with(of));
        let reconnect = keys.iter().any(|change| of_connections(&change.key)) || files.iter().any(is_of);
        let delivery = DeliveryChange {
            settings: settings.clone(),
            routing: front.routing.clone(),
            tls: tls.clone(),
            reconnect,
        };
        front.queue.set_limits(settings.queue_limits());
        self.parts.preparer.sign_with(signer);
        let (done, took) = std::sync::mpsc::channel();
        for worker in &self.parts.workers {
            let listener = |served: &Served| {
                // One for each worker.
                let socket = sockets.get_mut(&served.key).and_then(Vec::pop);
                (served.key, served.terms(&front), socket)
            };
            // A worker that has ended is told nothing.
            let _ = worker.send(Change {
                listeners: listeners.iter().map(listener).collect(),
                delivery: Some(delivery.clone()),
                done: Some(done.clone()),
            });
        }
        drop(done);
        for _ in &self.parts.workers {
            // A worker at its work is at it for a moment.
            if took.recv_timeout(TAKEN_WITHIN).is_err() {
                tracing::warn!("a worker takes long to go by the new configuration");
            }
        }
        let notice = front.routing.safe_mode_notice();
        if let Some(notice) = notice
            .as_ref()
            .filter(|_| notice != before.routing.safe_mode_notice())
        {
            tracing::warn!("{notice}");
        }
        self.parts.health.set_notice(notice);
        crate::logging::set_level(&settings.log_level);
        if let Some(credentials) = &front.credentials {
            credentials.look_now();
        }
        if let (Some(certificate), Some(now)) = (&self.parts.admin_certificate, admin_certificate) {
            certificate.store(now);
        }
        self.parts.tls = tls;
        self.parts.listeners = listeners;
        self.contents = contents;
        self.refused = None;
        self.parts.metrics.show(&settings);
        let mut changes: Vec<_> = keys.iter().map(ToString::to_string).collect();
        changes.extend(files.iter().map(|file| format!("{}: read anew", file.display())));
        Reloaded { changes }
    }
}

/// Keys that can't change while the relay runs, as mistakes.
fn settings_at_start_only(before: &config::effective::Effective, after: &Settings) -> Vec<Problem> {
    let is_fixed = |key: &str| {
        let fits = |fixed: &&str| key == *fixed || (fixed.ends_with('.') && key.starts_with(*fixed));
        AT_START_ONLY.iter().any(fits)
    };
    let changes = before.changes(&after.effective);
    let fixed = changes.into_iter().filter(|change| is_fixed(&change.key));
    let unset = || "not set".to_owned();
    fixed
        .map(|change| {
            let text = format!(
                "can't change while the relay runs; restart it, or set it back to {}",
                change.before.clone().unwrap_or_else(unset)
            );
            change.problem(text, before.file())
        })
        .collect()
}

fn tls_files(kind: &ListenerKind) -> Option<&TlsFiles> {
    match kind {
        ListenerKind::Submission(files) | ListenerKind::Submissions(files) => Some(files),
        ListenerKind::Trusted { tls, .. } => tls.as_ref(),
    }
}

/// Whether next hops are met otherwise with another content of this file.
fn is_of_connections(settings: &Settings, file: &Path) -> bool {
    settings.delivery.ca_file.as_deref() == Some(file)
        || password_files(settings).any(|password| password == file)
}

/// Those of next hops and proxies.
fn password_files(settings: &Settings) -> impl Iterator<Item = &Path> {
    smart_hosts::password_files(settings).chain(egress::password_files(settings))
}

fn with_passwords_read_anew(settings: &Settings) -> Result<Settings, String> {
    let mut settings = settings.clone();
    smart_hosts::read_passwords_anew(&mut settings)?;
    egress::read_passwords_anew(&mut settings)?;
    Ok(settings)
}

/// The certificates of listeners and admin API.
fn certificates(settings: &Settings) -> impl Iterator<Item = &TlsFiles> {
    let listeners = settings
        .listeners
        .iter()
        .filter_map(|listener| tls_files(&listener.kind));
    listeners.chain(settings.admin.http.as_ref().and_then(|http| http.tls.as_ref()))
}

/// The content of all files that are read beside the configuration. The credentials have a look of their own.
fn contents(settings: &Settings) -> Contents {
    let of_certificates =
        certificates(settings).flat_map(|files| [files.certificate.as_path(), files.key.as_path()]);
    let files: HashSet<&Path> = of_certificates
        .chain(settings.dkim.iter().map(|key| key.file.as_path()))
        .chain(settings.delivery.ca_file.as_deref())
        .chain(password_files(settings))
        .collect();
    files
        .into_iter()
        .map(|file| (file.to_owned(), content(file)))
        .collect()
}

fn content(file: &Path) -> Option<[u8; 32]> {
    // A pipe without a writer would hold us up for ever; whether it is a file worth reading is judged where it is used.
    if !std::fs::metadata(file).ok()?.is_file() {
        return None;
    }
    let mut octets = Vec::new();
    let file = std::fs::File::open(file).ok()?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut octets).ok()?;
    let octets = zeroize::Zeroizing::new(octets);
    digest::digest(&digest::SHA256, &octets).as_ref().try_into().ok()
}
