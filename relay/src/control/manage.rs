//! The relay as a whole, as operators see it: reload, configuration, drain.

use std::sync::Arc;

use admin_api::manage::{ConfigEntry, ConfigView, DrainState, Manage, Reloaded};
use admin_api::{Caller, ControlError};
use queue::{Queue, ReadError};

use crate::health::Health;
use crate::reload::{ReloadError, Reloader};

/// Queue records read at a time.
const PAGE: usize = 1_000;

/// See the module.
pub struct Manager {
    reloader: Arc<Reloader>,
    health: Arc<Health>,
    queue: Queue,
}

impl Manager {
    /// Of this relay.
    pub fn new(reloader: Arc<Reloader>, health: Arc<Health>, queue: Queue) -> Self {
        Self {
            reloader,
            health,
            queue,
        }
    }
}

impl Manage for Manager {
    async fn reload(&self, by: Caller) -> Result<Reloaded, ControlError> {
        tracing::info!(who = %by.0, "told to reload");
        let reloader = self.reloader.clone();
        match blocking(move || reloader.reload()).await? {
            Ok(done) => Ok(Reloaded {
                changes: done.changes,
            }),
            Err(ReloadError::Mistakes(mistakes)) => Err(ControlError::Refused(
                mistakes.iter().map(ToString::to_string).collect(),
            )),
            Err(ReloadError::Failed(why)) => Err(ControlError::Refused(vec![why])),
        }
    }

    async fn config(&self) -> Result<ConfigView, ControlError> {
        let reloader = self.reloader.clone();
        // A reload may be under way.
        let settings = blocking(move || reloader.settings()).await?;
        let effective = &settings.effective;
        let entry = |(key, value, default): (String, &str, bool)| ConfigEntry {
            key,
            value: value.to_owned(),
            default,
        };
        Ok(ConfigView {
            file: effective.file().display().to_string(),
            toml: effective.to_toml(),
            entries: effective.entries().map(entry).collect(),
        })
    }

    async fn drain_state(&self) -> Result<DrainState, ControlError> {
        let (reloader, queue) = (self.reloader.clone(), self.queue.clone());
        blocking(move || {
            let front = reloader.front();
            let messages = waiting(&queue).map_err(|error| ControlError::Store(error.to_string()))?;
            Ok(DrainState {
                draining: front.is_draining(),
                sessions: front.sessions() as u64,
                messages,
            })
        })
        .await?
    }

    async fn drain(&self, draining: bool, by: Caller) -> Result<DrainState, ControlError> {
        tracing::warn!(who = %by.0, draining, "told to drain, or to take mail again");
        let reloader = self.reloader.clone();
        let front = blocking(move || reloader.front()).await?;
        front.set_draining(draining);
        self.health.set_draining(draining);
        self.drain_state().await
    }
}

/// Messages that are in the queue. Blocks.
fn waiting(queue: &Queue) -> Result<u64, ReadError> {
    let (mut after, mut messages) = (None, 0);
    loop {
        let page = queue.queues(after, PAGE)?;
        // What is set aside goes nowhere.
        let waiting = page
            .iter()
            .map(|(_, record)| record.count - record.aside.min(record.count));
        messages += waiting.sum::<u64>();
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(*last),
            _ => return Ok(messages),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ControlError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ControlError::Store(error.to_string()))
}
