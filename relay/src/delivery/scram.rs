//! SCRAM's arithmetic as a client (RFC 5802 §3), off the reactor: its rounds are the peer's to choose, and may take long.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use mail_core::smtp::client::{ScramProof, ScramTask};
use mail_core::smtp::command::Secret;
use zeroize::Zeroizing;

/// `None` where the runtime is going down.
pub async fn prove(task: ScramTask, password: Secret) -> Option<ScramProof> {
    tokio::task::spawn_blocking(move || compute(&task, &password))
        .await
        .ok()
}

/// The proof, and what the server must answer.
pub(crate) fn compute(task: &ScramTask, password: &Secret) -> ScramProof {
    let mut salted = Zeroizing::new([0; digest::SHA256_OUTPUT_LEN]);
    let rounds = NonZeroU32::new(task.iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &task.salt,
        password.expose(),
        &mut *salted,
    );
    let salted = hmac::Key::new(hmac::HMAC_SHA256, &*salted);
    let client_key = hmac::sign(&salted, b"Client Key");
    let server_key = hmac::sign(&salted, b"Server Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let sign = |key: &[u8]| {
        hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, key),
            task.auth_message.as_bytes(),
        )
    };
    let client_signature = sign(stored_key.as_ref());
    let mut client = [0; 32];
    for (octet, (key, signature)) in client
        .iter_mut()
        .zip(client_key.as_ref().iter().zip(client_signature.as_ref()))
    {
        *octet = key ^ signature;
    }
    let mut server = [0; 32];
    server.copy_from_slice(sign(server_key.as_ref()).as_ref());
    ScramProof { client, server }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    use super::*;

    /// RFC 7677 §3.
    #[test]
    fn as_in_its_rfc() {
        let nonce = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let task = ScramTask {
            salt: BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(),
            iterations: 4096,
            auth_message: format!(
                "n=user,r=rOprNGfwEbeRWgbNEkqO,{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,{nonce}"
            ),
        };
        let proof = compute(&task, &Secret::new(b"pencil".to_vec()));
        assert_eq!(
            BASE64.encode(proof.client),
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(
            BASE64.encode(proof.server),
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }
}
