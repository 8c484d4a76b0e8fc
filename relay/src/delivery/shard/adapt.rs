//! What replies have taught a shard's lanes, and what operators have set beside: suspensions of a lane, or of what is wider, which
//! all shards know; and the pace of each lane, which its shard alone knows. Both are in the store too, for the next start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mail_core::Timestamp;
use queue::{
    AdjustmentKey, AdjustmentKind, AdjustmentRecord, BY_FAILURE, BY_REPLY, HoldScope, MAX_ADJUSTMENTS, Queue,
    QueueId, Scope, UnitKey,
};

use crate::delivery::adapt::{Held, Others, Pace, SaidTo, Step};
use crate::delivery::exchange::Word;
use crate::delivery::lane::{ConnectionId, Lane, NoMore};
use crate::shaping::Reach;
use crate::world::log_time;

use super::{CLOCKS_DIFFER, Effect, LaneId, Shard, Stand, Standing};

/// A pace that has changed is written at most so often.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// What was learned is forgotten after so long without a step: a lane that nobody uses learns nothing new.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);

/// A suspension whose time is over stays known for so long, so that lanes which come into memory meanwhile begin with one
/// connection.
const KNOWN_AFTER: Duration = Duration::from_secs(60);

/// The same of a source that has failed: it is tried as soon as there is mail for it, which may be a while.
const FAILURE_KNOWN_AFTER: Duration = Duration::from_secs(3_600);

/// A reply that teaches, and what it was said to.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it means for others than its own unit.
    pub others: Others,
    /// When the connection, or the transaction, was begun.
    pub begun: Timestamp,
    /// It was said instead of taking this connection.
    pub door: Option<ConnectionId>,
    /// The unit that was to be sent.
    pub unit: UnitKey,
    /// As it was said.
    pub said: String,
    /// Who said it.
    pub host: String,
    /// What it was taken for.
    pub class: Arc<str>,
}

fn ends(record: &AdjustmentRecord) -> Timestamp {
    record.until.unwrap_or(Timestamp::MAX)
}

impl Heard {
    fn said_to(&self) -> SaidTo {
        match self.door {
            Some(_) => SaidTo::Door,
            None if self.said.starts_with("421") => SaidTo::Leaving,
            None => SaidTo::Message,
        }
    }
}

/// Suspensions, and what operators limit lanes to; each shard holds all of them, up to [`MAX_ADJUSTMENTS`] of some 500 octets.
#[derive(Default)]
pub(super) struct Adjustments {
    /// By the site they name.
    by_site: HashMap<Option<Arc<str>>, BTreeMap<AdjustmentKey, Arc<AdjustmentRecord>>>,
    count: usize,
    /// Those that the committer had no room for.
    unwritten: Vec<Arc<AdjustmentRecord>>,
}

impl Adjustments {
    /// What the store has. What does not read is not obeyed: mail goes as if nothing had been learned.
    pub(super) fn read(queue: &Queue, now: Timestamp) -> Self {
        let mut all = Self::default();
        match queue.adjustments(None, MAX_ADJUSTMENTS) {
            Ok(stored) => {
                for (_, record) in stored {
                    let is_learned = record.key.kind == AdjustmentKind::Learned;
                    if !is_sound(&record, now) || (is_learned && !record.holds(now)) {
                        queue.end_adjustment(record.key, record.changed, "its end", now);
                    } else if !is_learned {
                        // One whose time is over is swept: until then its lanes begin with one connection.
                        all.insert(Arc::new(record));
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "adjustments can't be read: lanes begin as they are configured")
            }
        }
        all
    }

    fn insert(&mut self, record: Arc<AdjustmentRecord>) {
        let of_site = self.by_site.entry(record.key.scope.site.clone()).or_default();
        if of_site.insert(record.key.clone(), record).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, key: &AdjustmentKey) -> Option<Arc<AdjustmentRecord>> {
        let of_site = self.by_site.get_mut(&key.scope.site)?;
        let gone = of_site.remove(key)?;
        if of_site.is_empty() {
            self.by_site.remove(&key.scope.site);
        }
        self.count -= 1;
        Some(gone)
    }

    pub(super) fn get(&self, key: &AdjustmentKey) -> Option<&Arc<AdjustmentRecord>> {
        self.by_site.get(&key.scope.site)?.get(key)
    }

    /// Those that are about some of a lane's mail.
    fn about<'a>(&'a self, lane: &'a Scope) -> impl Iterator<Item = &'a Arc<AdjustmentRecord>> {
        let of_site = self.by_site.get(&lane.site).into_iter();
        let wide = self
            .by_site
            .get(&None)
            .into_iter()
            .filter(|_| lane.site.is_some());
        let all = of_site.chain(wide).flat_map(BTreeMap::values);
        all.filter(|record| {
            let whoever = Scope {
                tenant: None,
                ..record.key.scope.clone()
            };
            whoever.covers(lane)
        })
    }

    /// Those that are to be forgotten.
    fn over(&self, now: Timestamp) -> Vec<AdjustmentKey> {
        let all = self.by_site.values().flat_map(BTreeMap::values);
        let is_over = |record: &&Arc<AdjustmentRecord>| {
            let known_after = match record.key.kind {
                AdjustmentKind::Suspended if record.by == BY_FAILURE => FAILURE_KNOWN_AFTER,
                AdjustmentKind::Suspended => KNOWN_AFTER,
                AdjustmentKind::Limited | AdjustmentKind::Learned | AdjustmentKind::Full => Duration::ZERO,
            };
            record.until.is_some_and(|until| until + known_after <= now)
        };
        all.filter(is_over).map(|record| record.key.clone()).collect()
    }

    /// The one that the store drops for one more that was changed at this moment.
    fn least(&self, now: Timestamp) -> Option<AdjustmentKey> {
        let all = self.by_site.values().flat_map(BTreeMap::values);
        let least = all.min_by_key(|record| (record.importance(now), &record.key));
        least.map(|record| record.key.clone())
    }
}

impl Shard {
    /// A connection has come about.
    pub fn connection_opened(&mut self, lane: LaneId, connection: ConnectionId, now: Timestamp) {
        if let Some(at) = self.lanes.get_mut(lane) {
            at.adapt.opened(connection, at.open, now);
            // From here on it serves its lane.
            if at.service_of(connection).is_some() {
                at.begin_service(connection, now);
            }
            self.source_serves(lane, connection, now);
            self.settle_pace(lane, now);
            self.pump(lane, now);
        }
    }

    /// A message got through.
    pub fn got_through(&mut self, lane: LaneId, now: Timestamp) {
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let step = at.adapt.through(at.open, at.configured(), now);
        self.stepped(lane, step, now);
    }

    /// A reply teaches something.
    pub fn heard(&mut self, lane: LaneId, heard: &Heard, now: Timestamp) {
        let last = ConnectionId(self.last_connection);
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let others = match heard.others {
            Others::Suspend {
                after: Some(several), ..
            } if !self.tally.hears(&at.key, several.after, now) => several.until_then(),
            others => others,
        };
        if others == Others::Nothing {
            return;
        }
        at.adapt.refused(now);
        if let Others::Suspend {
            reach, time, ruled, ..
        } = others
        {
            // Said to the only connection there is, nothing works beside it.
            let is_alone = heard.door.is_some() && at.open <= 1;
            if ruled || is_alone || !at.adapt.works(now) {
                return self.suspend_by_reply(lane, heard, reach, time, now);
            }
            if heard.door.is_some() {
                // Those that have come about work; no further one is asked for before that.
                let working = at.adapt.working(at.open).max(1);
                at.refuse_more(working, now + time, now);
            }
        }
        at.said = Some(Said::of(heard));
        let of_connections = (at.open, last);
        let step = at
            .adapt
            .slower(heard.begun, heard.said_to(), of_connections, at.configured(), now);
        self.stepped(lane, step, now);
    }

    fn suspend_by_reply(
        &mut self,
        lane: LaneId,
        heard: &Heard,
        reach: Reach,
        time: Duration,
        now: Timestamp,
    ) {
        let tenant = self.active.get(&heard.unit.queue);
        let tenant = tenant.map(|active| active.name.tenant.clone());
        let has_sources = self.has_sources();
        let Some(at) = self.lanes.get(lane) else {
            return;
        };
        // A smart host, whoever runs it, is nobody's but ours.
        let speaker = at.plan.mx_hosts().next();
        let speaker = speaker.and_then(|_| self.settings.shaping.providers.of_host(&heard.host));
        let speaker = speaker.map(|provider| provider.name.clone());
        let (own, scope) = (
            at.scope(),
            reaches(at, reach, speaker, tenant.clone(), has_sources),
        );
        let whoever = Scope {
            tenant: None,
            ..scope.clone()
        };
        // Of a site that has hosts of others too, what is about the provider does not speak.
        let of_site = (!whoever.covers(&own)).then(|| reaches(at, reach, None, tenant, has_sources));
        for scope in [Some(scope), of_site].into_iter().flatten() {
            self.suspend_scope(lane, heard, scope, time, now);
        }
    }

    fn suspend_scope(&mut self, lane: LaneId, heard: &Heard, scope: Scope, time: Duration, now: Timestamp) {
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let key = AdjustmentKey::suspended(scope);
        let last = self.adjustments.get(&key);
        let before = last.filter(|before| before.holds(now));
        // Said to what was begun before the suspension: it says the same again.
        if before.is_some_and(|before| heard.begun <= before.since) {
            return;
        }
        let time_of = |last: &Arc<AdjustmentRecord>| Some(last.until?.since(last.since));
        let last = last.filter(|last| last.by == BY_REPLY).and_then(time_of);
        let until = now + at.adapt.suspension(time, last.unwrap_or_default(), now);
        if before.is_some_and(|before| before.until.is_none_or(|until_before| until_before >= until)) {
            return;
        }
        let record = AdjustmentRecord {
            key,
            since: now,
            changed: now,
            until: Some(until),
            connections: None,
            rate: None,
            refused: None,
            cause: AdjustmentRecord::cut(&heard.said),
            host: Some(heard.host.clone()),
            class: Some(heard.class.to_string()),
            by: BY_REPLY.to_owned(),
        };
        let (scope, said, host) = (&record.key, &record.cause, &heard.host);
        tracing::warn!(%scope, host, class = &*heard.class, reply = said, until = %log_time(until), "suspended by a reply");
        self.effects
            .push(Effect::Stepped("suspended", heard.class.clone()));
        self.stands(record, now);
    }

    /// Whether mail may come from somewhere else than the default source.
    fn has_sources(&self) -> bool {
        !self.settings.egress.sources.is_empty()
    }

    /// An adjustment begins, here and at all shards, and stands in the store.
    pub(super) fn stands(&mut self, record: AdjustmentRecord, now: Timestamp) {
        let record = Arc::new(record);
        self.write(record.clone());
        for shard in self.place.others() {
            self.tell(shard, Word::Adjusted(record.clone()));
        }
        self.adjusted(&record, now);
    }

    /// An adjustment begins, or is another now. What is on the wire finishes.
    pub(super) fn adjusted(&mut self, record: &Arc<AdjustmentRecord>, now: Timestamp) {
        if self.adjustments.count >= MAX_ADJUSTMENTS
            && self.adjustments.get(&record.key).is_none()
            && let Some(least) = self.adjustments.least(record.changed)
        {
            self.adjustment_ended(&least, "too many others", now);
        }
        let before = self.adjustments.get(&record.key).cloned();
        self.adjustments.insert(record.clone());
        self.refresh_lanes(&record.key.scope, now);
        if let Some(before) = before.filter(|before| ends(before) > ends(record)) {
            self.wake_held_by(&before, now);
        }
        if record.key.kind == AdjustmentKind::Limited {
            self.forget_paces(&record.key.scope, "an operator's limits", now);
        }
    }

    /// An adjustment ends before its time.
    pub(super) fn adjustment_ended(&mut self, key: &AdjustmentKey, by: &str, now: Timestamp) {
        if key.kind == AdjustmentKind::Learned {
            return self.forget_paces(&key.scope, by, now);
        }
        if let Some(record) = self.adjustments.remove(key) {
            self.wake_held_by(&record, now);
            self.refresh_lanes(&key.scope, now);
            self.look_again(&key.scope, now);
        }
    }

    /// Queues in memory that have left the turns of these lanes need not wait for their time.
    fn look_again(&mut self, scope: &Scope, now: Timestamp) {
        let meant: HashSet<_> = self.lanes_about(scope).into_iter().collect();
        if meant.is_empty() {
            return;
        }
        let waits = |stand: &Stand| stand.at == Standing::Out && meant.contains(&stand.lane);
        let active = self.active.iter();
        let waiting = active.filter(|(_, active)| active.stands.iter().any(waits));
        let mut waiting: Vec<_> = waiting.map(|(&id, _)| id).collect();
        waiting.sort_unstable();
        for id in waiting {
            self.set_queue_timer(id, now);
        }
    }

    /// Queues that left memory for it, the lanes of which may have gone with them.
    fn wake_held_by(&mut self, record: &AdjustmentRecord, now: Timestamp) {
        let told = record.told();
        let held_by = |held: &Held| held.since == record.since && *held.cause == told;
        let scopes = self.held_scopes.iter().filter(|(_, held)| held_by(held));
        let scopes: Vec<_> = scopes.map(|(scope, _)| scope.clone()).collect();
        for scope in scopes {
            self.wake_resting(&scope, now);
        }
    }

    /// Lanes that a scope is about go by what stands now.
    fn refresh_lanes(&mut self, scope: &Scope, now: Timestamp) {
        for lane in self.lanes_about(scope) {
            self.refresh_lane(lane, now);
            // Whoever waits for the end of what has ended looks again; it waits anew, if something else stands.
            if let Some(at) = self.lanes.get(lane) {
                let scope = HoldScope::Lane(at.key.scope());
                self.wake_resting(&scope, now);
            }
            self.pump(lane, now);
        }
    }

    /// Lanes some mail of which a scope is about, in order. There may be thousands, and replies that suspend one of them every moment.
    fn lanes_about(&mut self, scope: &Scope) -> Vec<LaneId> {
        let whoever = Scope {
            tenant: None,
            ..scope.clone()
        };
        let all = || self.lanes.iter().map(|(id, _)| id).collect();
        let mut lanes = self.lane_of.candidates(&whoever).unwrap_or_else(all);
        #[cfg(test)]
        {
            self.looked_at += lanes.len();
        }
        let is_meant = |lane: &Lane| whoever.covers(&lane.scope());
        lanes.retain(|&id| self.lanes.get(id).is_some_and(is_meant));
        lanes
    }

    /// Lanes' hosts may be another provider's now.
    pub(in crate::delivery) fn index_lanes(&mut self) {
        self.lane_of.renew_parts(self.lanes.iter());
    }

    /// Has the lane go by what stands now.
    pub(in crate::delivery) fn refresh_lane(&mut self, lane: LaneId, now: Timestamp) {
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let (mut held, mut tenants): (Option<Held>, BTreeMap<Arc<str>, Held>) = Default::default();
        let mut limited: (Option<usize>, Option<f64>) = (None, None);
        let mut no_more: Option<NoMore> = None;
        let scope = at.scope();
        for record in self.adjustments.about(&scope) {
            let tenant = record.key.scope.tenant.clone();
            match record.key.kind {
                AdjustmentKind::Suspended => {
                    let new = Held {
                        since: record.since,
                        until: record.until.unwrap_or(Timestamp::MAX),
                        cause: record.told().into(),
                    };
                    match tenant {
                        Some(tenant) => longer(tenants.entry(tenant).or_insert_with(|| new.clone()), new),
                        None => longer(held.get_or_insert_with(|| new.clone()), new),
                    }
                }
                AdjustmentKind::Limited if record.holds(now) => {
                    let connections = record.connections.map(|most| most as usize);
                    limited.0 = [limited.0, connections].into_iter().flatten().min();
                    limited.1 = [limited.1, record.rate]
                        .into_iter()
                        .flatten()
                        .min_by(f64::total_cmp);
                }
                AdjustmentKind::Full
                    if record.holds(now) && record.key.rule.as_deref() == at.key.rule.as_deref() =>
                {
                    no_more = Some(NoMore {
                        before: ends(record),
                        than: record.connections.map_or(0, |than| than as usize),
                    });
                }
                AdjustmentKind::Limited | AdjustmentKind::Learned | AdjustmentKind::Full => {}
            }
        }
        at.know_no_more(no_more);
        at.adapt.hold(held, tenants.into_iter().collect());
        let configured = at.configured();
        at.adapt.limit(limited, configured, now);
    }

    /// A lane that has just come into memory goes by what it had learned, and by what stands.
    pub(super) fn remember_lane(&mut self, lane: LaneId, now: Timestamp) {
        self.refresh_lane(lane, now);
        let has_sources = self.has_sources();
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        match self.queue.adjustment(&learned(at, has_sources)) {
            Ok(Some(record)) if record.holds(now) && is_sound(&record, now) => {
                let configured = at.configured();
                at.adapt.set_pace(Some(Pace::read(&record)), configured, now);
                at.said = Some(Said {
                    cause: record.cause,
                    host: record.host,
                    class: record.class.map(Arc::from),
                });
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "what a lane has learned can't be read"),
        }
    }

    /// It is known by now how many of the lane's connections are too many, or time is up.
    pub(super) fn settle_pace(&mut self, lane: LaneId, now: Timestamp) {
        if let Some(at) = self.lanes.get_mut(lane) {
            let configured = at.configured();
            let step = at.adapt.settle(at.open, configured, now);
            self.stepped(lane, step, now);
        }
    }

    /// Whether the queue's tenant is suspended at this lane.
    pub(super) fn holds_tenant(&self, lane: LaneId, id: QueueId, now: Timestamp) -> bool {
        self.tenant_held(lane, id, now).is_some()
    }

    pub(super) fn tenant_held(&self, lane: LaneId, id: QueueId, now: Timestamp) -> Option<&Held> {
        let at = self.lanes.get(lane)?;
        at.adapt.held_of(&self.active.get(&id)?.name.tenant, now)
    }

    /// Where its tenant is suspended at all of its lanes, the queue waits for the first of them.
    pub(super) fn hold_tenant_back(&mut self, id: QueueId, now: Timestamp) -> bool {
        let stands = self.active.get(&id).map_or(&[][..], |active| &active.stands);
        let mut first: Option<(LaneId, &Held)> = None;
        for stand in stands {
            // One that takes it will do.
            let Some(held) = self.tenant_held(stand.lane, id, now) else {
                return false;
            };
            if first.is_none_or(|(_, first)| held.until < first.until) {
                first = Some((stand.lane, held));
            }
        }
        let Some((lane, held)) = first.map(|(lane, held)| (lane, held.clone())) else {
            return false;
        };
        self.leave_turns(id);
        let Some(at) = self.lanes.get(lane) else {
            return false;
        };
        let scope = HoldScope::Lane(at.key.scope());
        self.hold_back(id, &scope, held.until, now);
        self.note_held(scope, Some(held));
        true
    }

    /// What of replies or operators holds a queue now, at all the lanes that may take its mail: what ends first.
    pub(super) fn held_by_adjustment(&self, id: QueueId, now: Timestamp) -> Option<&Held> {
        let stands = &self.active.get(&id)?.stands;
        let held = stands.iter().map(|stand| {
            let of_lane = self.lanes.get(stand.lane)?.adapt.held(now);
            of_lane.or_else(|| self.tenant_held(stand.lane, id, now))
        });
        let held: Option<Vec<_>> = held.collect();
        held?.into_iter().min_by_key(|held| held.until)
    }

    /// Whether a tenant's mail is suspended at a lane that may be another shard's.
    pub(super) fn is_suspended(&self, lane: &Scope, tenant: &Arc<str>, now: Timestamp) -> bool {
        self.adjustments.about(lane).any(|record| {
            let is_its = record.key.scope.tenant.as_ref().is_none_or(|of| of == tenant);
            record.key.kind == AdjustmentKind::Suspended && record.holds(now) && is_its
        })
    }

    fn stepped(&mut self, lane: LaneId, step: Option<Step>, now: Timestamp) {
        let has_sources = self.has_sources();
        let (Some(step), Some(at)) = (step, self.lanes.get_mut(lane)) else {
            return;
        };
        let limits = at.adapt.limits(at.configured());
        let (connections, rate) = match at.adapt.pace() {
            Some(pace) => (pace.connections(limits), pace.rate(limits)),
            None => (limits.connections, limits.rate),
        };
        let class = at.said.as_ref().and_then(|said| said.class.clone());
        let said = at.said.as_ref().map(|said| said.cause.as_str());
        let site = at.key.scope();
        let word = match step {
            Step::Slower => {
                tracing::warn!(
                    site,
                    class = class.as_deref(),
                    reply = said,
                    connections,
                    rate,
                    "goes slower"
                );
                "slower"
            }
            Step::Faster => {
                tracing::info!(site, connections, rate, "goes faster");
                "faster"
            }
            Step::Ended => {
                tracing::info!(site, connections, rate, "goes by its limits again");
                "ended"
            }
        };
        self.effects
            .push(Effect::Stepped(word, class.unwrap_or_else(|| Arc::from("other"))));
        if step == Step::Ended {
            let key = learned(at, has_sources);
            at.unsaved = None;
            self.queue.end_adjustment(key, now, "its successes", now);
        } else {
            at.unsaved.get_or_insert(now);
        }
        self.pump(lane, now);
    }

    /// Drops what lanes have learned, since an operator says otherwise.
    fn forget_paces(&mut self, scope: &Scope, by: &str, now: Timestamp) {
        // A pace is all tenants'.
        if scope.tenant.is_some() {
            return;
        }
        let has_pace = |lane: &Lane| lane.adapt.pace().is_some();
        let mut meant = self.lanes_about(scope);
        meant.retain(|&id| self.lanes.get(id).is_some_and(has_pace));
        for lane in meant {
            self.forget_pace(lane, by, now);
        }
    }

    fn forget_pace(&mut self, lane: LaneId, by: &str, now: Timestamp) {
        let has_sources = self.has_sources();
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let configured = at.configured();
        at.adapt.set_pace(None, configured, now);
        at.unsaved = None;
        at.allow_more();
        tracing::info!(site = %at.key.scope(), by, "goes by its limits again");
        let key = learned(at, has_sources);
        self.queue.end_adjustment(key, now, by, now);
        // What a host said of further connections stands by itself.
        self.refresh_lane(lane, now);
        self.pump(lane, now);
    }

    /// Once a second: what has changed is written, what is over deleted.
    pub(super) fn look_after_adjustments(&mut self, now: Timestamp) {
        self.write_again();
        let is_due = |lane: &Lane| {
            let written = lane.saved.is_none_or(|saved| now >= saved + WRITE_EVERY);
            lane.unsaved.is_some() && written
        };
        let due = self.lanes.iter().filter(|(_, lane)| is_due(lane));
        let due: Vec<_> = due.map(|(id, _)| id).collect();
        for lane in due {
            self.save_pace(lane);
            if let Some(at) = self.lanes.get_mut(lane) {
                at.saved = Some(now);
            }
        }
        let told = self.lanes.iter().filter(|(_, lane)| lane.has_unsaved_no_more());
        let told: Vec<_> = told.map(|(id, _)| id).collect();
        for lane in told {
            self.save_no_more(lane, now);
        }
        // One that stays in memory for a day without a step.
        let is_over = |lane: &Lane| {
            lane.adapt
                .pace()
                .is_some_and(|pace| now >= pace.changed + FORGOTTEN_AFTER)
        };
        let over = self.lanes.iter().filter(|(_, lane)| is_over(lane));
        let over: Vec<_> = over.map(|(id, _)| id).collect();
        for lane in over {
            self.forget_pace(lane, "its end", now);
        }
        for key in self.adjustments.over(now) {
            let Some(record) = self.adjustments.remove(&key) else {
                continue;
            };
            tracing::info!(scope = %key, "an adjustment is over");
            self.refresh_lanes(&key.scope, now);
            // Each shard says so: of all that do, the first is heard.
            self.queue.end_adjustment(key, record.changed, "its end", now);
        }
    }

    /// Writes a suspension down, now or as soon as the committer has room.
    fn write(&mut self, record: Arc<AdjustmentRecord>) {
        if !self.queue.adjust((*record).clone()) && self.adjustments.unwritten.len() < MAX_ADJUSTMENTS {
            self.adjustments.unwritten.push(record);
        }
    }

    /// What there was no room for is written, unless it is over or another by now.
    fn write_again(&mut self) {
        for record in std::mem::take(&mut self.adjustments.unwritten) {
            if self.adjustments.get(&record.key) == Some(&record) {
                self.write(record);
            }
        }
    }

    /// Writes a lane's pace down, if it has changed.
    pub(super) fn save_pace(&mut self, lane: LaneId) {
        let has_sources = self.has_sources();
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let limits = at.adapt.limits(at.configured());
        let (Some(since), Some(pace)) = (at.unsaved.take(), at.adapt.pace()) else {
            return;
        };
        let (cause, host, class) = match &at.said {
            Some(said) => (said.cause.clone(), said.host.clone(), said.class.as_deref()),
            None => (String::new(), None, None),
        };
        let record = AdjustmentRecord {
            key: learned(at, has_sources),
            since: pace.since,
            changed: pace.changed,
            until: Some(pace.changed + FORGOTTEN_AFTER),
            connections: u32::try_from(pace.connections(limits)).ok(),
            rate: pace.rate(limits),
            refused: Some(pace.refused()),
            cause,
            host,
            class: class.map(str::to_owned),
            by: BY_REPLY.to_owned(),
        };
        if !self.queue.adjust(record)
            && let Some(at) = self.lanes.get_mut(lane)
        {
            at.unsaved = Some(since);
        }
    }

    /// Writes down that a host takes no further connections, and until when.
    fn save_no_more(&mut self, lane: LaneId, now: Timestamp) {
        let has_sources = self.has_sources();
        let Some(at) = self.lanes.get_mut(lane) else {
            return;
        };
        let no_more = at.take_unsaved_no_more();
        let (Some(NoMore { before, than }), Some(said)) = (no_more, at.said.clone()) else {
            return;
        };
        let AdjustmentKey { scope, rule, .. } = learned(at, has_sources);
        let key = AdjustmentKey::full(scope, rule);
        let known = self.adjustments.get(&key).filter(|known| known.holds(now));
        let record = AdjustmentRecord {
            since: known.map_or(now, |known| known.since),
            key,
            changed: now,
            until: Some(before),
            connections: u32::try_from(than).ok(),
            rate: None,
            refused: None,
            cause: said.cause,
            host: said.host,
            class: said.class.as_deref().map(str::to_owned),
            by: BY_REPLY.to_owned(),
        };
        let (scope, reply, host) = (&record.key, &record.cause, record.host.as_deref());
        tracing::warn!(%scope, host, reply, connections = than, until = %log_time(before), "opens no further connections");
        self.stands(record, now);
    }
}

/// A reply that made a lane slower.
#[derive(Clone, Debug)]
pub struct Said {
    cause: String,
    host: Option<String>,
    class: Option<Arc<str>>,
}

impl Said {
    fn of(heard: &Heard) -> Self {
        Self {
            cause: AdjustmentRecord::cut(&heard.said),
            host: Some(heard.host.clone()),
            class: Some(heard.class.clone()),
        }
    }
}

/// What a reply or a failure taught while the clock was ahead ends who knows when: it is forgotten.
fn is_sound(record: &AdjustmentRecord, now: Timestamp) -> bool {
    record.is_operators() || record.changed <= now + CLOCKS_DIFFER
}

/// The later end counts.
fn longer(known: &mut Held, new: Held) {
    if new.until > known.until {
        *known = new;
    }
}

/// What a lane's mail comes from, where there is more than one such place.
fn source_of(lane: &Lane, has_sources: bool) -> Option<Arc<str>> {
    lane.scope().source.filter(|_| has_sources)
}

/// Under which key a lane's pace is kept.
fn learned(lane: &Lane, has_sources: bool) -> AdjustmentKey {
    let scope = Scope {
        provider: None,
        source: source_of(lane, has_sources),
        ..lane.scope()
    };
    AdjustmentKey::learned(scope, lane.key.rule.as_deref().map(Arc::from))
}

/// Which mail a reply said to this lane suspends, by a host of this provider's.
fn reaches(
    lane: &Lane,
    reach: Reach,
    provider: Option<Arc<str>>,
    tenant: Option<Arc<str>>,
    has_sources: bool,
) -> Scope {
    let Scope { site, .. } = lane.scope();
    let source = source_of(lane, has_sources);
    // Where nobody is known to run the hosts, the site is all there is.
    let site_or_provider = Scope {
        site: site.clone().filter(|_| provider.is_none()),
        provider,
        ..Scope::default()
    };
    match reach {
        Reach::Lane => Scope {
            site,
            source,
            ..Scope::default()
        },
        Reach::Site => Scope {
            site,
            ..Scope::default()
        },
        Reach::Provider => site_or_provider,
        Reach::Source => Scope {
            source,
            ..site_or_provider
        },
        Reach::Tenant => Scope {
            tenant,
            ..site_or_provider
        },
    }
}

#[cfg(test)]
mod tests;
