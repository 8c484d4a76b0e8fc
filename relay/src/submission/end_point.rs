//! `tls-server-end-point` (RFC 5929 §4): the hash of our certificate that SCRAM-SHA-256-PLUS can be bound to.

use aws_lc_rs::digest;

use crate::tls::der::{SEQUENCE, element};

/// The hash of a certificate (DER) by the hash of its own signature; SHA-256 in place of MD5 and SHA-1. `None` where the
/// signature has no one hash (Ed25519, RSA-PSS with parameters): RFC 5929 then leaves it undefined.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … } (RFC 5280 §4.1).
    let (certificate_body, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(certificate_body, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (name, _) = element(algorithm, OID)?;
    let hash = match name {
        // 1.2.840.113549.1.1.N
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11] => &digest::SHA256,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] => &digest::SHA384,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] => &digest::SHA512,
        // 1.2.840.10045.4.1 and 1.2.840.10045.4.3.N
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => &digest::SHA256,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => &digest::SHA384,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

const OID: u8 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (algorithm, length) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Some(32)),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)),
            (&rcgen::PKCS_ED25519, None),
        ] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let parameters = rcgen::CertificateParams::new(vec!["mx.test".into()]).unwrap();
            let certificate = parameters.self_signed(&key).unwrap();
            let hash = end_point(certificate.der());
            assert_eq!(hash.as_ref().map(Vec::len), length);
            if length == Some(32) {
                let whole = digest::digest(&digest::SHA256, certificate.der());
                assert_eq!(hash.as_deref(), Some(whole.as_ref()));
            }
        }
        for broken in [
            &b""[..],
            b"\x30",
            b"\x30\x05\x30",
            b"\x30\x85\x01\x01\x01\x01\x01",
            b"\x30\x84\xff\xff\xff\xff",
        ] {
            assert_eq!(end_point(broken), None);
        }
    }
}
