//! Queues and holds as the admin API shows them.

use admin_api::{Hold, MAX_PAGE, QueueList, QueueSummary, QueuesQuery, Time};
use mail_core::{MessageId, Timestamp};
use queue::{
    HoldRecord, HoldScope, MAX_SUSPENSIONS, Queue, QueueId, QueueRecord, ReadError, SuspensionRecord,
    UnitKey, suspension,
};

use super::{LOOKED_AT, PAGE, suspend};
use crate::delivery::parked;

/// Before all of a queue's units.
const FIRST: (Timestamp, MessageId, u16) = (Timestamp(0), MessageId::LEAST, 0);

/// A page of queues, and the first unit of each.
pub(super) fn queues(
    queue: &Queue,
    query: &QueuesQuery,
    selector: &queue::Selector,
    now: Timestamp,
) -> Result<(QueueList, Vec<Option<UnitKey>>), ReadError> {
    let suspensions = queue.suspensions(MAX_SUSPENSIONS)?;
    let limit = query.limit.unwrap_or(PAGE);
    let (mut list, mut firsts) = (QueueList::default(), Vec::new());
    let mut after = query.after.map(QueueId);
    let mut looked = 0;
    loop {
        let page = queue.queues_of(selector, after, MAX_PAGE)?;
        looked += page.looked;
        for (id, record) in page.queues {
            if list.queues.len() == limit {
                list.next = after.map(|id| id.0);
                return Ok((list, firsts));
            }
            after = Some(id);
            if record.count > 0 || query.empty {
                let (summary, first) = summary(queue, id, &record, &suspensions, now)?;
                list.queues.push(summary);
                firsts.push(first);
            }
        }
        let Some(next) = page.next else {
            return Ok((list, firsts));
        };
        after = Some(next);
        if looked >= LOOKED_AT {
            list.next = Some(next.0);
            return Ok((list, firsts));
        }
    }
}

/// A queue, and its first unit.
pub(super) fn summary(
    queue: &Queue,
    id: QueueId,
    record: &QueueRecord,
    suspensions: &[SuspensionRecord],
    now: Timestamp,
) -> Result<(QueueSummary, Option<UnitKey>), ReadError> {
    let suspension = suspension(suspensions, id, &record.name, now);
    let (first, _) = queue.due(id, FIRST, 1)?;
    let first = first.first().copied();
    let scope = HoldScope::Domain(record.name.domain.clone());
    let summary = QueueSummary {
        id: id.0,
        tenant: record.name.tenant.to_string(),
        stream: record.name.stream.to_string(),
        route_group: record.name.route_group.0,
        domain: record.name.domain.to_string(),
        messages: record.count,
        bytes: record.bytes,
        set_aside: record.aside,
        oldest: first.map(|unit| Time(unit.id.created())),
        next_due: first.map(|unit| Time(unit.due)),
        wake: record.wake.and_then(parked::time).map(Time),
        hold: queue
            .held(&scope)?
            .filter(|record| record.until > now)
            .map(|record| hold(&scope, record)),
        suspension: suspension.cloned().map(suspend::suspension),
        waits: None,
    };
    Ok((summary, first))
}

pub(super) fn hold(scope: &HoldScope, record: HoldRecord) -> Hold {
    let (scope, name) = match scope {
        HoldScope::Domain(domain) => ("domain", domain.to_string()),
        HoldScope::Lane(lane) => ("lane", lane.clone()),
    };
    Hold {
        scope: scope.to_owned(),
        name,
        since: Time(record.since),
        until: Time(record.until),
        failures: record.failures,
        cause: record.cause,
        class: None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use admin_api::Control as _;

    use super::super::tests::{START, accept, control};
    use super::*;

    #[tokio::test]
    async fn pages_of_queues_cover_all_once() {
        let (queue, control) = control();
        for (number, domain) in ["a.test", "b.test", "c.test", "d.test", "e.test"]
            .iter()
            .enumerate()
        {
            accept(&queue, u8::try_from(number).unwrap(), &[domain]).await;
        }
        let record = HoldRecord {
            since: START,
            until: START + Duration::from_secs(60),
            failures: 1,
            cause: "SERVFAIL".into(),
        };
        // One that is over holds nothing.
        let over = HoldRecord {
            until: START,
            ..record.clone()
        };
        queue.hold(HoldScope::Domain("b.test".parse().unwrap()), over);
        queue.hold(HoldScope::Domain("c.test".parse().unwrap()), record);
        let mut seen = Vec::new();
        let of_one = QueuesQuery {
            domain: Some("c.test".into()),
            ..QueuesQuery::default()
        };
        let only = control.queues(of_one).await.unwrap().queues;
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].domain, "c.test");
        let wrong = QueuesQuery {
            domain: Some("not a domain".into()),
            ..QueuesQuery::default()
        };
        let told = control.queues(wrong).await.unwrap_err().to_string();
        assert!(told.starts_with("\"not a domain\" is no domain: "), "{told}");
        let mut query = QueuesQuery {
            limit: Some(2),
            ..QueuesQuery::default()
        };
        loop {
            let list = control.queues(query.clone()).await.unwrap();
            assert!(list.queues.len() <= 2);
            seen.extend(list.queues);
            match list.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
        let domains: Vec<_> = seen.iter().map(|queue| queue.domain.as_str()).collect();
        assert_eq!(domains, ["a.test", "b.test", "c.test", "d.test", "e.test"]);
        assert_eq!(seen[0].messages, 1);
        assert_eq!(seen[0].oldest, Some(Time(START)));
        let held: Vec<_> = seen.iter().map(|queue| queue.hold.is_some()).collect();
        assert_eq!(held, [false, false, true, false, false]);
        let holds = control.holds().await.unwrap();
        let names: Vec<_> = holds.holds.iter().map(|hold| hold.name.as_str()).collect();
        assert_eq!((names, holds.more), (vec!["c.test"], false));
    }
}
