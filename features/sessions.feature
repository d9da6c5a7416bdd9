Feature: A session is turns that share context and a budget

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-SESS-1 @ORCHD-SESS-2
  Scenario: The first task that names a session makes it, and it has so many turns
    Given the setting "sessions.max_turns" is 2
    When alice submits "first" in the session "chat"
    Then the answer is 202
    And the answer tells the session "chat"
    When "first" is done
    And alice submits "second" in the session "chat"
    And "second" is done
    And alice submits "third" in the session "chat"
    Then the answer is 409 SESSION_EXHAUSTED
    And the answer says:
      | retriable         | false |
      | details.max_turns | 2     |
    When alice reads the session "chat"
    Then the answer is 200
    And the answer tells the session "chat"
    And the answer says:
      | turns                   | 2    |
      | kv_warmth               | true |
      | tokens_budget_remaining | null |
    And the session has at most 600000 ms left
    When alice submits "elsewhere" in the session "another chat"
    Then the answer is 202

  @ORCHD-SESS-1
  Scenario: A session that nobody uses is forgotten, and refused requests are no use
    Given the setting "sessions.max_turns" is 1
    And the setting "sessions.ttl_ms" is 1000
    When alice submits "first" in the session "chat"
    And "first" is done
    And alice submits "second" in the session "chat"
    Then the answer is 409 SESSION_EXHAUSTED
    When alice submits "second" in the session "chat" until it is taken
    And alice reads the session "chat"
    Then the answer says:
      | turns | 1 |

  @ORCHD-SESS-1 @ORCHD-SESS-2
  Scenario: A session does not expire while a task of it lives, and does afterwards
    Given its tokens take 10 ms
    And the setting "sessions.ttl_ms" is 1000
    When alice submits "long" in the session "chat" with:
      | max_tokens | 150 |
    And "long" is done
    And alice reads the session "chat"
    Then the answer is 200
    And alice reads the session "chat" until it is gone
    And the metrics are:
      | sessions_evicted_total{reason="ttl"} | 1 |

  @ORCHD-SESS-2 @ORCHD-AUTH-2
  Scenario: Another key's session is none
    When alice submits "first" in the session "chat"
    And bob reads the session "chat"
    Then the answer is 404 NOT_FOUND
    When bob deletes the session "chat"
    Then the answer is 404 NOT_FOUND
    When bob submits "theft" in the session "chat"
    Then the answer is 404 NOT_FOUND
    When the operator reads the session "chat"
    Then the answer is 200
    And the answer says:
      | turns | 1 |
    When alice sends GET "/v1/sessions/0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e"
    Then the answer is 404 NOT_FOUND
    When alice sends GET "/v1/sessions/chat"
    Then the answer is 400 INVALID_PARAMS

  @ORCHD-SESS-2
  Scenario: Deleting a session ends its tasks, running and waiting, and no others
    Given its tokens take 10 ms
    When alice submits "running" in the session "chat" with:
      | max_tokens | 3000 |
    And "running" is running
    And alice watches "running"
    And alice submits "waiting" in the session "chat"
    And alice submits "bystander" of priority interactive
    And alice deletes the session "chat"
    Then the answer is 204
    And the stream "running" ends with error CANCELED
    And "waiting" is canceled
    And "bystander" is done
    When alice reads the session "chat"
    Then the answer is 404 NOT_FOUND
    When alice submits "anew" in the session "chat"
    Then the answer is 202
    When alice reads the session "chat"
    Then the answer says:
      | turns | 1 |

  @ORCHD-SESS-3
  Scenario: A session goes back to where its context is
    Given it has 3 replicas
    And the pool "words" is ready with 3 replicas
    When alice submits "turn 1" in the session "chat"
    And "turn 1" is done
    And alice submits "other 1" of priority interactive
    And "other 1" is done
    And alice submits "turn 2" in the session "chat" with:
      | prompt | Something else altogether |
    And "turn 2" is done
    And alice submits "turn 3" in the session "chat"
    And "turn 3" is done
    Then "turn 1", "turn 2", "turn 3" ran on the same replica

  @ORCHD-SESS-3
  Scenario: A session waits for its replica where that is soon free
    Given it has 2 replicas
    And its tokens take 10 ms
    And the pool "words" is ready with 2 replicas
    When alice submits "turn 1" in the session "chat"
    And "turn 1" is done
    And alice submits "turn 2" in the session "chat" with:
      | max_tokens | 15 |
    And "turn 2" is running
    And alice submits "turn 3" in the session "chat"
    And "turn 3" is done
    Then "turn 1", "turn 2", "turn 3" ran on the same replica
