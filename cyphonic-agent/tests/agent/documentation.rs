//! What programs print for others to act on is explained to them.

use cyphonic_common::drop_reason::DropReason;

#[test]
fn every_reason_for_a_drop_is_explained() {
    let page = include_str!("../../../docs/operations.md");
    let (_, table) = page.split_once("Why packets are dropped").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let missing: Vec<_> =
        DropReason::ALL.iter().filter(|reason| !table.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
}
