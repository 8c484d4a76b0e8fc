//! Queues by tenant, stream and domain, and what waits of each tenant's stream: so that neither a list nor a count reads
//! what it does not show.
//!
//! A queue enters the index with its directory entry, once. Totals are written with each group that changes them, from memory.

use std::collections::BTreeMap;

use crate::committer::read;
use crate::keys::{self, IndexedBy};
use crate::names::{QueueId, QueueName};
use crate::records::{QueueRecord, TotalsRecord, decode};
use crate::store::{Batch, Family, Store, StoreError};
use crate::suspension::Selector;
use crate::{Queue, ReadError};

/// What this program writes.
const VERSION: u16 = 1;

/// Queues read, and written, by one step of [`rebuild`].
const REBUILT_AT_ONCE: usize = 4_096;

/// Queues of a selector, in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub struct QueuePage {
    /// Those that are meant, empty ones too.
    pub queues: Vec<(QueueId, QueueRecord)>,
    /// How many were looked at.
    pub looked: usize,
    /// The last one looked at; to go on after, where there may be more.
    pub next: Option<QueueId>,
}

/// What waits of a tenant's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Who sends.
    pub tenant: String,
    /// Which of their streams.
    pub stream: String,
    /// How much.
    pub total: TotalsRecord,
}

/// Adds a queue that is made now.
pub(crate) fn add(batch: &mut Batch, id: QueueId, name: &QueueName) {
    for (by, name) in [
        (IndexedBy::Tenant, &*name.tenant),
        (IndexedBy::Stream, &*name.stream),
        (IndexedBy::Domain, name.domain.as_str()),
    ] {
        batch.put_copy(Family::Queues, &keys::index(by, name, id), &[]);
    }
}

/// Makes the index, and the totals, where they are not there, are of another version, or do not verify. For a store that
/// nothing else uses yet. True if it was needed.
pub(crate) fn prepare(store: &dyn Store) -> Result<bool, StoreError> {
    let is_ours = match store.get(Family::Meta, keys::INDEX) {
        Ok(found) => found.as_deref() == Some(&VERSION.to_be_bytes()[..]),
        Err(error) if error.is_corruption() => false,
        Err(error) => return Err(error),
    };
    let (from, to) = ([keys::TOTALS], [keys::TOTALS + 1]);
    let (mut sound, mut old) = (is_ours, Vec::new());
    let read = store.scan(Family::Queues, &from, &to, &mut |key, value| {
        sound &= keys::parse_totals(key).is_some() && decode::<TotalsRecord>(value).is_ok();
        old.push(key.to_vec());
        true
    });
    if let Err(error) = read {
        if !error.is_corruption() {
            return Err(error);
        }
        sound = false;
        old.clear();
        store.scan_past(Family::Queues, &from, &to, &mut |key, _| {
            old.push(key.to_vec());
            true
        })?;
    }
    if !sound {
        rebuild(store, &old)?;
    }
    Ok(!sound)
}

fn rebuild(store: &dyn Store, old_totals: &[Vec<u8>]) -> Result<(), StoreError> {
    let mut totals = BTreeMap::<Vec<u8>, TotalsRecord>::new();
    let mut from = keys::record(QueueId(0)).to_vec();
    loop {
        let (mut batch, mut last) = (Batch::default(), None);
        let mut looked = 0;
        store.scan_past(
            Family::Queues,
            &from,
            &keys::record(QueueId(u64::MAX)),
            &mut |key, value| {
                looked += 1;
                last = Some(key.to_vec());
                let id = key.get(1..).and_then(keys::number).map(QueueId);
                // One that does not read is told of by whoever comes by it, and belongs to nobody.
                if let (Some(id), Ok(record)) = (id, decode::<QueueRecord>(value)) {
                    add(&mut batch, id, &record.name);
                    let key = keys::totals(&record.name.tenant, &record.name.stream);
                    totals
                        .entry(key)
                        .or_default()
                        .change((0, 0), (record.count, record.bytes));
                }
                looked < REBUILT_AT_ONCE
            },
        )?;
        let Some(last) = last else { break };
        store.write(&batch, false)?;
        from = [&last[..], &[0]].concat();
    }
    let mut batch = Batch::default();
    for key in old_totals {
        batch.delete(Family::Queues, key);
    }
    for (key, total) in totals {
        batch.put_record(Family::Queues, &key, &total);
    }
    batch.put_copy(Family::Meta, keys::INDEX, &VERSION.to_be_bytes());
    store.write(&batch, true)
}

impl TotalsRecord {
    /// A queue had so many units and octets, and has so many now.
    pub(crate) fn change(&mut self, (count, bytes): (u64, u64), (now_count, now_bytes): (u64, u64)) {
        let change = |total: u64, before, now| total.saturating_add(now).saturating_sub(before);
        self.queues = change(self.queues, u64::from(count > 0), u64::from(now_count > 0));
        self.count = change(self.count, count, now_count);
        self.bytes = change(self.bytes, bytes, now_bytes);
    }
}

impl Queue {
    /// Looks at up to `limit` queues after `after`: through the index where the selector names a domain, a tenant or a stream,
    /// through all queues otherwise.
    pub fn queues_of(
        &self,
        selector: &Selector,
        after: Option<QueueId>,
        limit: usize,
    ) -> Result<QueuePage, ReadError> {
        if let Some(id) = selector.queue {
            let found = if after.is_some_and(|after| after >= id) {
                None
            } else {
                self.info(id)?
            };
            let queues = found.filter(|record| selector.selects(id, &record.name));
            return Ok(QueuePage {
                queues: queues.map(|record| (id, record)).into_iter().collect(),
                looked: 1,
                next: None,
            });
        }
        // Few tenants write to one domain; a tenant has few streams, and a stream many tenants.
        let by = match selector {
            Selector {
                domain: Some(domain), ..
            } => (IndexedBy::Domain, domain.as_str()),
            Selector {
                tenant: Some(tenant), ..
            } => (IndexedBy::Tenant, &**tenant),
            Selector {
                stream: Some(stream), ..
            } => (IndexedBy::Stream, &**stream),
            _ => {
                let queues = self.queues(after, limit)?;
                let next = queues.last().map(|(id, _)| *id).filter(|_| queues.len() >= limit);
                return Ok(QueuePage {
                    looked: queues.len(),
                    next,
                    queues,
                });
            }
        };
        let ids = self.indexed(by, after, limit)?;
        let mut page = QueuePage {
            looked: ids.len(),
            next: ids.last().copied().filter(|_| ids.len() >= limit),
            queues: Vec::new(),
        };
        for id in ids {
            match self.info(id) {
                Ok(record) => {
                    let record = record.filter(|record| selector.selects(id, &record.name));
                    page.queues.extend(record.map(|record| (id, record)));
                }
                Err(error @ ReadError::Damaged { .. }) => tracing::error!(queue = %id, %error, "left out"),
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    fn indexed(
        &self,
        (by, name): (IndexedBy, &str),
        after: Option<QueueId>,
        limit: usize,
    ) -> Result<Vec<QueueId>, ReadError> {
        let from = keys::index(
            by,
            name,
            QueueId(after.map_or(0, |after| after.0.saturating_add(1))),
        );
        let to = keys::index(by, name, QueueId(u64::MAX));
        let mut ids = Vec::new();
        self.store.scan_past(Family::Queues, &from, &to, &mut |key, _| {
            ids.extend(keys::parse_index(key));
            ids.len() < limit
        })?;
        Ok(ids)
    }

    /// What waits of each tenant's stream; streams that once had something are among them. As many records as there are
    /// streams of tenants, however much waits.
    pub fn totals(&self) -> Result<Vec<Totals>, ReadError> {
        totals(&*self.store)
    }
}

/// See [`Queue::totals`]. Those that do not verify are left out until the next start, which counts them anew.
pub(crate) fn totals(store: &dyn Store) -> Result<Vec<Totals>, ReadError> {
    let mut totals = Vec::new();
    store.scan_past(
        Family::Queues,
        &[keys::TOTALS],
        &[keys::TOTALS + 1],
        &mut |key, value| {
            if let (Some((tenant, stream)), Ok(total)) = (keys::parse_totals(key), decode(value)) {
                totals.push(Totals {
                    tenant: tenant.to_owned(),
                    stream: stream.to_owned(),
                    total,
                });
            }
            true
        },
    )?;
    Ok(totals)
}

/// A stream's totals as the committer takes them up; `None` where they do not verify: they count from nothing then, until the next start.
pub(crate) fn read_totals(store: &dyn Store, key: &[u8]) -> Result<Option<TotalsRecord>, ReadError> {
    match read(store, Family::Queues, key) {
        Ok(total) => Ok(Some(total.unwrap_or_default())),
        Err(error @ ReadError::Damaged { .. }) => {
            tracing::error!(%error, "what waits of a stream is counted anew at the next start");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
