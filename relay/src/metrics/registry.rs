//! A registry that remembers what it was given.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;

/// What is counted: prometheus's registry, which can also tell of metrics that have no series yet.
#[derive(Clone, Default)]
pub struct Registry {
    inner: prometheus::Registry,
    metrics: Arc<Mutex<BTreeMap<String, Metric>>>,
}

/// A metric: what all its series have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// What it says.
    pub help: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Names of the labels that tell its series apart.
    pub labels: Vec<String>,
}

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metric; an error where one of that name is there.
    pub fn register(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        let kinds: BTreeMap<_, _> = collector
            .collect()
            .iter()
            .map(|family| (family.name().to_owned(), format!("{:?}", family.get_field_type())))
            .collect();
        let metrics = collector.desc().into_iter().map(|desc| {
            let metric = Metric {
                help: desc.help.clone(),
                kind: kinds
                    .get(&desc.fq_name)
                    .map_or_else(String::new, |kind| kind.to_lowercase()),
                labels: desc.variable_labels.clone(),
            };
            (desc.fq_name.clone(), metric)
        });
        let metrics: Vec<_> = metrics.collect();
        self.inner.register(collector)?;
        self.metrics.lock().extend(metrics);
        Ok(())
    }

    /// All series there are.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.inner.gather()
    }

    /// All metrics, by name.
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        self.metrics.lock().clone()
    }
}
