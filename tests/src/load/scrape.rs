//! One reading of a tail's `/metrics`.

use std::collections::HashMap;

/// The values of one scrape, by name with labels as they are written.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    values: HashMap<String, f64>,
}

impl Scrape {
    /// Reads Prometheus' text format; what is no sample is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let values = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self {
            values: values.collect(),
        }
    }

    /// The value of a series; 0 where it is not there yet.
    #[must_use]
    pub fn value(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    /// True where the series is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// KV blocks in a state: `held`, `promised`, `kept` or `free`.
    #[must_use]
    pub fn kv_blocks(&self, state: &str) -> f64 {
        self.value(&format!("headway_tail_kv_blocks{{state=\"{state}\"}}"))
    }

    /// How much a counter has grown since `before`.
    #[must_use]
    pub fn since(&self, before: &Self, name: &str) -> f64 {
        self.value(name) - before.value(name)
    }

    /// How much all series of a counter have grown together since `before`.
    #[must_use]
    pub fn sum_since(&self, before: &Self, name: &str) -> f64 {
        self.sum(name) - before.sum(name)
    }

    /// All series whose name begins so, labels included.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, f64)> {
        self.values
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), *value))
    }

    fn sum(&self, name: &str) -> f64 {
        let labelled = format!("{name}{{");
        self.with_prefix(&labelled).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_known_by_name_and_labels() {
        let text = "# HELP a b\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\nb 7\n";
        let scrape = Scrape::parse(text);
        assert_eq!(scrape.value("a_total{x=\"2\"}"), 3.5);
        assert_eq!(scrape.value("b"), 7.0);
        assert_eq!(scrape.sum_since(&Scrape::default(), "a_total"), 5.5);
        assert!(!scrape.has("a_total"));
    }
}
