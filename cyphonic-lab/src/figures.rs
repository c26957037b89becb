//! What a measuring verb found: named figures with the machine they were found on, as JSON and as a table.
//!
//! A figure is what was measured in this run, or it is absent. Names are `snake_case` and end in their unit,
//! so that two runs can be compared by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::LabError;

/// Version of the JSON form.
const SCHEMA: u32 = 1;

/// The units there are.
const UNITS: [&str; 19] = [
    "",
    "s",
    "ms",
    "µs",
    "ns",
    "Gbit/s",
    "Mbit/s",
    "kpps",
    "1/s",
    "s/GB",
    "GB",
    "MB",
    "MiB",
    "KiB",
    "kB",
    "B",
    "bytes",
    "%",
    "instructions",
];

/// All figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    schema: u32,
    verb: String,
    machine: Machine,
    figures: BTreeMap<String, Figure>,
    /// What a reader must know of them: versions, and why a figure is absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<String, String>,
}

/// One of the units there are; under a name of its own, or it would be taken to be borrowed from what is
/// read.
type Unit = &'static str;

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The value.
    pub value: f64,
    /// Its unit, as in `ms`.
    #[serde(deserialize_with = "known_unit")]
    pub unit: Unit,
    /// How it was made from the samples.
    pub stat: Statistic,
    /// How many samples there were.
    pub n: usize,
    /// The least of them.
    pub min: f64,
    /// The greatest of them.
    pub max: f64,
}

/// How one value stands for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistic {
    /// The middle one.
    Median,
    /// The arithmetic mean.
    Mean,
    /// The 99th percentile, nearest rank.
    P99,
    /// Their sum: a count.
    Count,
    /// There is only one.
    Single,
}

/// Where the figures come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Load average of the last minute, when the run began.
    pub load: f64,
}

impl Figure {
    /// From samples; none without any.
    pub fn of(samples: &[f64], stat: Statistic, unit: &'static str) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max, n) = (*sorted.first()?, *sorted.last()?, sorted.len());
        let sum: f64 = sorted.iter().sum();
        let value = match stat {
            Statistic::Median => median(&sorted)?,
            Statistic::Mean => sum / n as f64,
            Statistic::P99 => *sorted.get((n * 99).div_ceil(100).saturating_sub(1))?,
            Statistic::Count => sum,
            Statistic::Single => *sorted.last()?,
        };
        Some(Self { value, unit, stat, n, min, max })
    }

    /// A single value.
    pub fn single(value: f64, unit: &'static str) -> Self {
        Self { value, unit, stat: Statistic::Single, n: 1, min: value, max: value }
    }

    /// A number of things.
    pub fn count(value: u32) -> Self {
        let value = f64::from(value);
        Self { value, unit: "", stat: Statistic::Count, n: 1, min: value, max: value }
    }
}

impl Figures {
    /// None yet, for a verb.
    pub fn new(verb: &str) -> Self {
        Self {
            schema: SCHEMA,
            verb: verb.to_owned(),
            machine: Machine::this(),
            figures: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, name: &str, figure: Figure) {
        self.figures.insert(name.to_owned(), figure);
    }

    /// Adds what a reader must know.
    pub fn note(&mut self, about: &str, text: impl Into<String>) {
        self.notes.insert(about.to_owned(), text.into());
    }

    /// What was noted, by what it is about.
    pub fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.notes.iter().map(|(about, text)| (about.as_str(), text.as_str()))
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// The file cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, LabError> {
        let text = fs::read_to_string(path).map_err(LabError::file("read", path))?;
        serde_json::from_str(&text).map_err(|error| LabError::file("understand", path)(error.into()))
    }

    /// One by name.
    pub fn get(&self, name: &str) -> Option<&Figure> {
        self.figures.get(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Figure)> {
        self.figures.iter().map(|(name, figure)| (name.as_str(), figure))
    }

    /// Where they were measured.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Writes them as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LabError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|source| LabError::State { path: path.to_owned(), source })?;
        // What nobody could read (a unit that there is not) is not written either.
        serde_json::from_str::<Self>(&text)
            .map_err(|error| LabError::file("write what nobody understands to", path)(error.into()))?;
        fs::write(path, text + "\n").map_err(LabError::file("write", path))
    }

    /// All of them as a table.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for (name, Figure { value, unit, stat, n, min, max }) in &self.figures {
            let _ = write!(table, "{name:<32} {value:>12.3} {unit:<7}");
            if *n > 1 {
                let _ = write!(table, " {stat:?} of {n}, {min:.3} to {max:.3}");
            }
            table.push('\n');
        }
        table
    }
}

impl Machine {
    /// The one this runs on; what cannot be found out is empty.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"));
        let cpu = model.and_then(|line| line.split_once(": ")).map(|(_, name)| name.trim().to_owned());
        Self {
            cpu: cpu.unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
        }
    }
}

fn known_unit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let text = String::deserialize(deserializer)?;
    let known = UNITS.into_iter().find(|unit| *unit == text);
    known.ok_or_else(|| D::Error::custom(format!("there is no unit {text:?}")))
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_what_their_names_say() {
        let of = |samples: &[f64], stat| Figure::of(samples, stat, "ms").map(|figure| figure.value);
        assert_eq!(of(&[3.0, 1.0, 2.0], Statistic::Median), Some(2.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0], Statistic::Median), Some(2.5));
        assert_eq!(of(&[1.0, 2.0, 6.0], Statistic::Mean), Some(3.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(of(&hundred, Statistic::P99), Some(99.0));
        assert_eq!(of(&[], Statistic::Median), None);
    }

    #[test]
    fn what_nobody_could_read_is_not_written() {
        let mut figures = Figures::new("demo");
        figures.insert("speed", Figure::single(1.0, "furlongs"));
        let file = std::env::temp_dir().join(format!("cyphonic-figures-{}.json", std::process::id()));
        let error = figures.write(&file).unwrap_err().to_string();
        assert!(error.contains("furlongs") && !file.exists(), "{error}");
    }

    #[test]
    fn the_json_form_is_the_agreed_one() {
        let mut figures = Figures::new("demo");
        figures.insert("setup_ms", Figure::of(&[2.0, 4.0], Statistic::Median, "ms").unwrap());
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["verb"], "demo");
        assert!(json["machine"]["cores"].as_u64().unwrap() > 0);
        let expected =
            serde_json::json!({"value": 3.0, "unit": "ms", "stat": "median", "n": 2, "min": 2.0, "max": 4.0});
        assert_eq!(json["figures"]["setup_ms"], expected);
        assert_eq!(serde_json::from_value::<Figures>(json).unwrap(), figures);
    }
}
