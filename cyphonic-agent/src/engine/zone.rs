//! The overlay's zone, as the root signed it.
//!
//! The intermediate that issued this device's certificate may issue names below one domain only (its name
//! constraint, RFC 5280 §4.2.1.10). That domain is the zone: no configuration, and nobody can change it
//! later.

use cyphonic_proto::name;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The zone of the overlay that issued this chain (leaf first).
pub(crate) fn of_chain(chain: &[CertificateDer<'_>]) -> Result<String, String> {
    let issuer = chain.get(1).ok_or("it has no intermediate certificate; enrol again")?;
    let (_, issuer) =
        X509Certificate::from_der(issuer).map_err(|error| format!("its intermediate: {error}"))?;
    let mut extensions = issuer.extensions().iter().map(|extension| extension.parsed_extension());
    let zone = extensions.find_map(|extension| match extension {
        ParsedExtension::NameConstraints(constraints) => {
            let mut permitted = constraints.permitted_subtrees.iter().flatten();
            permitted.find_map(|subtree| match &subtree.base {
                GeneralName::DNSName(zone) => Some((*zone).trim_start_matches('.').to_owned()),
                _ => None,
            })
        }
        _ => None,
    });
    let zone = zone.ok_or("its intermediate names no zone; enrol again with a current cloud")?;
    name::canonical(&zone).map_err(|error| format!("its intermediate's zone: {error}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, GeneralSubtree, IsCa, KeyPair, NameConstraints};

    use super::*;

    fn issuer(zone: Option<&str>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = zone.map(|zone| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(zone.to_owned())],
            excluded_subtrees: vec![GeneralSubtree::DnsName(format!("svc.{zone}"))],
        });
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn the_zone_is_what_the_issuer_may_name() {
        let chain = [issuer(None), issuer(Some("cyphonic.internal"))];
        assert_eq!(of_chain(&chain).as_deref(), Ok("cyphonic.internal"));
    }

    #[test]
    fn a_chain_without_a_zone_is_refused_with_what_to_do() {
        assert!(of_chain(&[issuer(None)]).unwrap_err().contains("enrol again"));
        assert!(of_chain(&[issuer(None), issuer(None)]).unwrap_err().contains("enrol again"));
        assert!(of_chain(&[issuer(None), CertificateDer::from(vec![0x30])]).is_err());
    }
}
