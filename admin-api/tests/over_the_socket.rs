//! The API as a client meets it: over a Unix socket, with a made-up program behind.

#![allow(
    clippy::unwrap_used,
    reason = "a test; its helpers are outside of test functions"
)]

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;

use admin_api::adjust::{
    Adjustment, AdjustmentKind, AdjustmentList, AdjustmentsQuery, EndAdjustment, Ended, Scope, SetAdjustment,
};
use admin_api::aside::{AsideList, AsideQuery};
use admin_api::client::{Client, ClientError};
use admin_api::limits::LimitList;
use admin_api::operate::{
    Delete, Deletion, MessageList, MessagesQuery, Preview, Progress, Resume, Retry, Selector, Suspend,
    Suspension, SuspensionList,
};
use admin_api::socket::{AdminSocket, SocketError};
use admin_api::{
    Caller, Control, ControlError, HoldList, MessageView, QueueList, QueueSummary, QueuesQuery, Raw, Time,
    router,
};
use mail_core::{MessageId, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

const KNOWN: MessageId = MessageId::from_bytes([7; 16]);

struct Made;

fn adjustment(by: &str, site: Option<&str>) -> Adjustment {
    let time = Time(Timestamp(1_700_000_000_000));
    Adjustment {
        kind: AdjustmentKind::Slower,
        scope: Scope {
            site: site.map(str::to_owned),
            ..Scope::default()
        },
        destination: None,
        since: time,
        changed: time,
        until: None,
        connections: Some(45),
        messages_per_second: None,
        cause: "421 too many".into(),
        host: None,
        class: None,
        by: by.into(),
    }
}

impl Control for Made {
    async fn limits(&self) -> Result<LimitList, ControlError> {
        Ok(LimitList::default())
    }

    async fn queues(&self, query: QueuesQuery) -> Result<QueueList, ControlError> {
        let queue = QueueSummary {
            id: query.after.unwrap_or(0) + 1,
            tenant: "acme".into(),
            stream: "transactional".into(),
            route_group: 0,
            domain: "example.com".into(),
            messages: 3,
            bytes: 4_000,
            set_aside: 0,
            oldest: None,
            next_due: Some(Time(Timestamp(1_700_000_000_000))),
            wake: None,
            hold: None,
            suspension: None,
            waits: None,
        };
        let queue = QueueSummary {
            tenant: query.tenant.unwrap_or(queue.tenant),
            ..queue
        };
        Ok(QueueList {
            queues: vec![queue; query.limit.unwrap_or(1)],
            next: None,
        })
    }

    async fn holds(&self) -> Result<HoldList, ControlError> {
        Err(ControlError::Store("made to fail".into()))
    }

    async fn message(&self, id: MessageId) -> Result<Option<MessageView>, ControlError> {
        assert_eq!(id, KNOWN);
        Ok(None)
    }

    async fn queue(&self, _id: u64) -> Result<Option<QueueSummary>, ControlError> {
        Ok(None)
    }

    async fn messages(&self, query: MessagesQuery) -> Result<MessageList, ControlError> {
        Ok(MessageList {
            next: query.tenant.or_else(|| {
                let (sender, recipient, tag) = (query.sender?, query.recipient?, query.tag?);
                Some(format!(
                    "{sender} {recipient} {tag} {}",
                    query.older_than_seconds?
                ))
            }),
            ..MessageList::default()
        })
    }

    async fn aside(&self, query: AsideQuery) -> Result<AsideList, ControlError> {
        Ok(AsideList {
            next: query.after,
            ..AsideList::default()
        })
    }

    async fn raw(&self, id: MessageId, by: Caller) -> Result<Option<Raw>, ControlError> {
        let (sender, parts) = mpsc::channel(9);
        let octets = by.0.as_bytes().to_vec();
        let bytes = octets.len() as u64;
        sender.send(Ok(octets.into())).await.unwrap();
        if id == KNOWN {
            return Ok(Some(Raw { bytes, parts }));
        }
        // The message ends while it is read.
        sender
            .send(Err(ControlError::Absent("gone".into())))
            .await
            .unwrap();
        Ok(Some(Raw {
            bytes: bytes + 10,
            parts,
        }))
    }

    async fn adjustments(&self, query: AdjustmentsQuery) -> Result<AdjustmentList, ControlError> {
        let adjustment = adjustment("reply", query.site.as_deref());
        Ok(AdjustmentList {
            adjustments: vec![adjustment; usize::from(query.kind == Some(AdjustmentKind::Slower))],
            next: query.after,
        })
    }

    async fn adjust(&self, set: SetAdjustment, by: Caller) -> Result<Adjustment, ControlError> {
        Ok(Adjustment {
            messages_per_second: set.messages_per_second,
            ..adjustment(&by.0, set.scope.site.as_deref())
        })
    }

    async fn end_adjustment(&self, end: EndAdjustment, _by: Caller) -> Result<Ended, ControlError> {
        match end.kind {
            Some(_) => Ok(Ended { ended: 2 }),
            None => Err(ControlError::Absent("no such adjustment".into())),
        }
    }

    async fn suspensions(&self) -> Result<SuspensionList, ControlError> {
        Ok(SuspensionList::default())
    }

    async fn suspend(&self, suspend: Suspend, by: Caller) -> Result<Suspension, ControlError> {
        Ok(Suspension {
            selector: suspend.selector,
            since: Time(Timestamp(0)),
            until: suspend
                .for_seconds
                .map(|seconds| Time(Timestamp(seconds * 1_000))),
            reason: suspend.reason,
            by: by.0.to_string(),
        })
    }

    async fn resume(&self, _resume: Resume, _by: Caller) -> Result<(), ControlError> {
        Err(ControlError::Absent("not suspended".into()))
    }

    async fn retry(&self, retry: Retry, _by: Caller) -> Result<Progress, ControlError> {
        Ok(Progress {
            next: retry.after,
            ..Progress::default()
        })
    }

    async fn delete(&self, _delete: Delete, _by: Caller) -> Result<Deletion, ControlError> {
        Ok(Deletion::Preview(Preview {
            queues: 1,
            messages: 2,
            bytes: 3,
            shared: 4,
            looked: 5,
            next: None,
            token: Some("t".into()),
        }))
    }
}

fn serve(path: &Path) -> tokio::task::JoinHandle<()> {
    let AdminSocket { listener, name } = AdminSocket::bind(path).unwrap();
    tokio::spawn(async move {
        let _name = name;
        let routes = router(Arc::new(Made)).merge(admin_api::openapi::router());
        admin_api::server::serve_socket(listener, routes).await;
    })
}

async fn raw(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may have answered and closed before all of it was written.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn answers_and_tells_problems() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let _server = serve(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let client = Client::new(&path);
    let query = QueuesQuery {
        after: Some(41),
        limit: Some(2),
        empty: true,
        tenant: Some("a&b".into()),
        ..QueuesQuery::default()
    };
    let list = client.queues(&query).await.unwrap();
    assert_eq!((list.queues.len(), list.queues[0].id), (2, 42));
    assert_eq!(list.queues[0].tenant, "a&b");
    let too_many = QueuesQuery {
        limit: Some(1_001),
        ..QueuesQuery::default()
    };
    for (problem, status) in [
        (client.queues(&too_many).await.unwrap_err(), 400),
        (client.holds().await.unwrap_err(), 503),
        (client.message(KNOWN).await.unwrap_err(), 404),
    ] {
        let ClientError::Refused(problem) = problem else {
            panic!("{problem}")
        };
        assert_eq!(problem.status, status, "{problem:?}");
    }
}

#[tokio::test]
async fn changes_are_posted_and_know_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let _server = serve(&path);
    let client = Client::new(&path);
    let me = format!("uid {}", std::fs::metadata(&path).unwrap().uid());
    let selector = Selector {
        tenant: Some("a&b=c d".into()),
        ..Selector::default()
    };
    let suspend = Suspend {
        selector: selector.clone(),
        until: None,
        for_seconds: Some(7_200),
        reason: "maintenance".into(),
    };
    let done = client.suspend(&suspend).await.unwrap();
    assert_eq!((&done.selector, &done.by), (&selector, &me));
    assert_eq!(done.until, Some(Time(Timestamp(7_200_000))));
    let mut octets = Vec::new();
    client.raw(KNOWN, &mut octets).await.unwrap();
    assert_eq!(octets, me.as_bytes());
    let cut = client
        .raw(MessageId::from_bytes([9; 16]), &mut Vec::new())
        .await
        .unwrap_err();
    assert!(matches!(cut, ClientError::Http(_)), "{cut}");
    let query = MessagesQuery {
        tenant: selector.tenant.clone(),
        ..MessagesQuery::default()
    };
    assert_eq!(client.messages(&query).await.unwrap().next, selector.tenant);
    // All of it arrives as it was given.
    let query = MessagesQuery {
        sender: Some("<>".into()),
        recipient: Some("\"a b\"+&=@example.com".into()),
        tag: Some("June & July".into()),
        older_than_seconds: Some(7_200),
        ..MessagesQuery::default()
    };
    let told = client.messages(&query).await.unwrap().next;
    let expected = r#"<> "a b"+&=@example.com June & July 7200"#;
    assert_eq!(told.as_deref(), Some(expected));
    let wrong = "GET /v1/messages?older_than_seconds=-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(&path, wrong.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let Err(ClientError::Refused(problem)) = client.resume(&Resume { selector }).await else {
        panic!("there is nothing to resume");
    };
    assert_eq!((problem.status, problem.detail.as_str()), (404, "not suspended"));
    // A form of a foreign page can't send this type, and nothing is changed by GET.
    let close = "Host: x\r\nConnection: close\r\nContent-Length: 2\r\n";
    for (request, expected) in [
        (
            format!("POST /v1/delete HTTP/1.1\r\n{close}Content-Type: text/plain\r\n\r\n{{}}"),
            "415",
        ),
        (
            format!("POST /v1/delete HTTP/1.1\r\n{close}Content-Type: application/json\r\n\r\n{{}}"),
            "422",
        ),
        // A length below zero is none.
        (
            format!(
                "POST /v1/suspensions HTTP/1.1\r\n{}Content-Type: application/json\r\n\r\n{}",
                close.replace("Length: 2", "Length: 55"),
                "{\"selector\":{\"all\":true},\"for_seconds\":-1,\"reason\":\"x\"}"
            ),
            "422",
        ),
        (format!("GET /v1/delete HTTP/1.1\r\n{close}\r\n{{}}"), "405"),
    ] {
        let answer = raw(&path, request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}")),
            "{request}: {answer}"
        );
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
}

#[tokio::test]
async fn garbage_ends_its_own_connection_at_the_most() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let _server = serve(&path);
    let close = "Host: x\r\nConnection: close\r\n\r\n";
    let mut large = b"GET /v1/queues HTTP/1.1\r\nX: ".to_vec();
    large.resize(1 << 20, b'x');
    for (request, expected) in [
        (b"\0\xff\x16\x03\x01 garbage\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        (large, "HTTP/1.1 431"),
        (
            format!("GET /v1/messages/..%2fetc HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 400",
        ),
        (
            format!("GET /v1/messages/%ff HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 400",
        ),
        (
            format!("GET /v1/queues?limit=-1 HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 400",
        ),
        (
            format!("GET /v1/queues?unknown=1 HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 400",
        ),
        (
            format!("POST /v1/queues HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 405",
        ),
        (
            format!("GET /nothing HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 404",
        ),
        (
            format!("GET /v1/queues HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 200",
        ),
        (
            format!("GET /openapi.json HTTP/1.1\r\n{close}").into_bytes(),
            "HTTP/1.1 200",
        ),
    ] {
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
        let answer = raw(&path, &request).await;
        assert!(answer.starts_with(expected), "{shown}: {answer}");
        let is_problem = answer.contains("application/problem+json");
        // What is no HTTP, or too long, has no request to answer.
        let is_ours = shown.contains("/v1") && !expected.ends_with("200") && !expected.ends_with("431");
        assert!(is_problem || !is_ours, "{answer}");
    }
}

#[tokio::test]
async fn replaces_a_dead_socket_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let server = serve(&path);
    assert!(matches!(AdminSocket::bind(&path), Err(SocketError::InUse(_))));
    server.abort();
    let _ = server.await;
    assert!(!path.exists(), "the name stays after the end");

    // Left by a process that was killed.
    drop(StdListener::bind(&path).unwrap());
    let replaced = AdminSocket::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    drop(replaced);

    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        AdminSocket::bind(&path),
        Err(SocketError::NotASocket(_))
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert!(matches!(
        AdminSocket::bind(&folder.path().join("none/admin.sock")),
        Err(SocketError::Io { .. })
    ));
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn adjustments_are_listed_made_and_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let _server = serve(&path);
    let client = Client::new(&path);
    let site = "mx1.a.test,mx2.a.test & more?";
    let query = AdjustmentsQuery {
        kind: Some(AdjustmentKind::Slower),
        site: Some(site.into()),
        after: Some("61".into()),
        ..AdjustmentsQuery::default()
    };
    let list = client.adjustments(&query).await.unwrap();
    assert_eq!(list.adjustments, [adjustment("reply", Some(site))]);
    assert_eq!(list.next.as_deref(), Some("61"));
    let set = SetAdjustment {
        scope: list.adjustments[0].scope.clone(),
        messages_per_second: Some(0.5),
        reason: "a test".into(),
        ..SetAdjustment::default()
    };
    let made = client.adjust(&set).await.unwrap();
    assert_eq!(made.messages_per_second, Some(0.5));
    assert!(made.by.starts_with("uid "), "{made:?}");
    let mut end = EndAdjustment {
        scope: set.scope,
        kind: None,
    };
    let Err(ClientError::Refused(problem)) = client.end_adjustment(&end).await else {
        panic!("there is none");
    };
    assert_eq!(problem.status, 404);
    end.kind = Some(AdjustmentKind::Slower);
    assert_eq!(client.end_adjustment(&end).await.unwrap().ended, 2);
}
