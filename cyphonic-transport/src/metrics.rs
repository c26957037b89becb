//! The text form of Prometheus, in which commands print what there is to measure, for the node exporter's
//! textfile collector.

use std::fmt::{Display, Write};

/// Families of samples, each after its description.
#[derive(Debug)]
pub struct Text {
    prefix: &'static str,
    family: &'static str,
    /// A label of all samples.
    label: Option<(&'static str, String)>,
    out: String,
}

impl Text {
    /// Nothing yet, of families whose names begin like this.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, family: "", label: None, out: String::new() }
    }

    /// Has all samples say this, so that texts of several programs of a kind can be read together.
    #[must_use]
    pub fn labelled(self, name: &'static str, value: String) -> Self {
        Self { label: Some((name, value)), ..self }
    }

    /// Begins a family of values that go up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) {
        self.begin(name, "gauge", help);
    }

    /// Begins a family of values that only grow while what counts them runs.
    pub fn counter(&mut self, name: &'static str, help: &str) {
        self.begin(name, "counter", help);
    }

    fn begin(&mut self, name: &'static str, kind: &str, help: &str) {
        self.family = name;
        let prefix = self.prefix;
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {prefix}_{name} {help}\n# TYPE {prefix}_{name} {kind}");
    }

    /// A value of the family that was begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let of_all = self.label.iter().map(|(name, value)| (*name, value.as_str()));
        let labels = of_all.chain(labels.iter().copied());
        let labels: Vec<_> = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.out, "{}_{}{labels} {value}", self.prefix, self.family);
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.out
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_of_all_samples_comes_first() {
        let mut text = Text::new("cyphonic").labelled("agent", "plc".to_owned());
        text.gauge("up", "Whether.");
        text.sample(&[], 1);
        text.sample(&[("id", "x")], 0);
        let samples: Vec<_> = text.into_string().lines().skip(2).map(str::to_owned).collect();
        assert_eq!(samples, ["cyphonic_up{agent=\"plc\"} 1", "cyphonic_up{agent=\"plc\",id=\"x\"} 0"]);
    }

    #[test]
    fn a_family_is_described_before_its_samples() {
        let mut text = Text::new("cyphonic_cloud");
        text.gauge("tokens_open", "Unused tokens.");
        text.sample(&[], 3);
        text.counter("drops_total", "Packets.");
        text.sample(&[("reason", "a\"b\\c\n"), ("path", "xdp")], 0);
        assert_eq!(
            text.into_string(),
            "# HELP cyphonic_cloud_tokens_open Unused tokens.\n# TYPE cyphonic_cloud_tokens_open gauge\n\
             cyphonic_cloud_tokens_open 3\n\
             # HELP cyphonic_cloud_drops_total Packets.\n# TYPE cyphonic_cloud_drops_total counter\n\
             cyphonic_cloud_drops_total{reason=\"a\\\"b\\\\c\\n\",path=\"xdp\"} 0\n"
        );
    }
}
