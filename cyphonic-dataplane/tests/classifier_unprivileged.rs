//! In a process of its own: aya finds out once per process what the kernel permits, so a process that gave up
//! its capabilities would spoil the result for every other test in it.

use std::net::Ipv6Addr;

use cyphonic_common::InterfaceConfig;
use cyphonic_dataplane::bpf::{BpfError, EgressClassifier};

const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

#[test]
fn a_process_without_capabilities_is_told_what_it_needs() {
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).unwrap();
    }
    let config = InterfaceConfig::new(OWN.octets(), OWN.octets(), 48).unwrap();
    let error = EgressClassifier::attach("lo", config).unwrap_err();
    assert!(matches!(error, BpfError::NotPermitted { .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_BPF and CAP_NET_ADMIN"), "{error}");
}
