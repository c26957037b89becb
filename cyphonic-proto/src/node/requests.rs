//! What the NMS asks of this node.

use std::time::Instant;

use super::{Action, Node, Service};
use crate::id::ExchangeId;
use crate::message::{AccessConfirmation, Message, Refusal, RefusalCode, RevocationConfirmation};

impl Node {
    /// A service asks: only the NMS does, with a RouteDirection, a RouteWithdrawal, a RevocationNotice or an
    /// AccessNotice.
    /// Answered by [`Action::Respond`], perhaps later.
    pub fn handle_request(&mut self, now: Instant, service: Service, exchange: ExchangeId, message: Message) {
        let accepted = match message {
            Message::RouteDirection(direction) if service == Service::Nms => {
                self.respond_to(now, exchange, direction)
            }
            Message::RouteWithdrawal(withdrawal) if service == Service::Nms => {
                self.withdrawn(now, exchange, &withdrawal)
            }
            Message::RevocationNotice(notice) if service == Service::Nms => {
                self.act(Action::Respond {
                    exchange,
                    message: Message::RevocationConfirmation(RevocationConfirmation {}),
                });
                self.peers_revoked(now, &notice);
                Ok(())
            }
            Message::AccessNotice(notice) if service == Service::Nms => {
                self.act(Action::Respond {
                    exchange,
                    message: Message::AccessConfirmation(AccessConfirmation {}),
                });
                self.access_noticed(&notice);
                Ok(())
            }
            other => {
                Err(Refusal::new(RefusalCode::Malformed, format!("a node does not answer {}", other.name())))
            }
        };
        if let Err(refusal) = accepted {
            self.act(Action::Respond { exchange, message: refusal.into() });
        }
    }
}
