Feature: What a session or a key may spend is reserved before it is spent

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-BUDG-1 @ORCHD-BUDG-2 @ORCHD-TASK-1
  Scenario: Tokens are reserved at admission and settled at the end
    Given the setting "streaming.metrics_every_ms" is 10
    And the pool "words" is ready
    When alice submits "first" in the session "chat" with:
      | max_tokens | 50             |
      | budget     | {"tokens":100} |
    Then the answer is 202
    And the header "X-Budget-Tokens-Remaining" is at most 45
    And the answer has no header "X-Budget-Cost-Remaining"
    And the answer has no header "X-Budget-Time-Remaining-Ms"
    When alice submits "second" in the session "chat" with:
      | max_tokens | 60 |
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says:
      | retriable         | false         |
      | policy_label      | budget-tokens |
      | details.budget_of | session       |
    And the answer says to come back within 600000 ms
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same
    When "first" is done
    And alice reads the session "chat"
    Then the answer says:
      | tokens_budget_remaining | 45 |
    When alice submits and streams "third" in the session "chat" with:
      | max_tokens | 20 |
    Then the answer is 200
    And the header "X-Budget-Tokens-Remaining" is at most 20
    And the stream "third" ends with end
    And the metrics events of "third" tell a tokens_budget_remaining of at most 20
    When alice reads the session "chat"
    Then the answer says:
      | tokens_budget_remaining | 20 |
    And the metrics are:
      | budget_refusals_total{dimension="tokens"} | 1 |

  @ORCHD-BUDG-1
  Scenario: Tasks of the same moment never overshoot a budget
    Given the setting "admission.default_max_tokens" is 15
    And the pool "words" is ready
    When alice submits 50 tasks at once in the session "chat" with:
      | budget | {"tokens":100} |
    Then at most 5 of the answers are 202 and the others 429 BUDGET_EXHAUSTED

  @ORCHD-BUDG-1
  Scenario: Cost is what the pool's price makes of the tokens
    Given its price is 1000 for a thousand tokens in and 2000 out
    And the pool "words" is ready
    When alice submits "first" in the session "chat" with:
      | max_tokens | 10          |
      | budget     | {"cost":60} |
    Then the header "X-Budget-Cost-Remaining" is at most 35
    When "first" is done
    And alice reads the session "chat"
    Then the answer says:
      | cost_budget_remaining | 35 |
    When alice submits "second" in the session "chat" with:
      | max_tokens | 20 |
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says:
      | policy_label | budget-cost |
    When alice submits and streams "third" in the session "chat" with:
      | max_tokens | 5 |
    Then the header "X-Budget-Cost-Remaining" is at most 20
    And the stream "third" ends with end

  @ORCHD-BUDG-1
  Scenario: Time is what is predicted, then what was taken
    Given the pool "words" is ready
    When alice submits "first" in the session "chat" with:
      | max_tokens | 20               |
      | budget     | {"time_ms":3000} |
    Then the answer is 202
    And the header "X-Budget-Time-Remaining-Ms" is at most 2900
    When "first" is done
    And alice submits "second" in the session "chat" with:
      | max_tokens      | 3000 |
      | expected_tokens | 3000 |
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says:
      | policy_label | budget-time |

  @ORCHD-BUDG-2
  Scenario: A session begins with the operator's budget or less, and later tasks only lower it
    Given the setting "sessions.budget" is {"tokens":1000}
    And the pool "words" is ready
    When alice submits "first" in the session "chat" with:
      | max_tokens | 5                 |
      | budget     | {"tokens":100000} |
    Then the header "X-Budget-Tokens-Remaining" is at most 990
    When alice submits "second" in the session "chat" with:
      | max_tokens | 5              |
      | budget     | {"tokens":500} |
    Then the header "X-Budget-Tokens-Remaining" is at most 480
    When alice submits "third" in the session "chat" with:
      | max_tokens | 5              |
      | budget     | {"tokens":900} |
    Then the header "X-Budget-Tokens-Remaining" is at most 470
    When "third" is done
    And alice reads the session "chat"
    Then the answer says:
      | tokens_budget_remaining | 470 |

  @ORCHD-BUDG-2
  Scenario: A new session is not new money where the key has a budget of its own
    Given bob may spend 100 tokens in 2678400000 ms
    And the pool "words" is ready
    When bob submits "first" in the session "chat" with:
      | max_tokens | 50 |
    Then the header "X-Budget-Tokens-Remaining" is at most 45
    When bob submits "second" in the session "another chat" with:
      | max_tokens | 50 |
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says:
      | policy_label      | budget-tokens |
      | details.budget_of | key           |
    And the answer says to come back within 2678400000 ms
    When alice submits "hers" in the session "her chat" with:
      | max_tokens | 50 |
    Then the answer is 202

  @ORCHD-BUDG-2
  Scenario: A key's budget is new in the next window of time
    Given bob may spend 40 tokens in 1000 ms
    And the setting "sessions.max_turns" is 100
    And the pool "words" is ready
    When bob submits "some" in the session "chat" until it is refused
    Then the answer is 429 BUDGET_EXHAUSTED
    And the answer says to come back within 1000 ms
    When bob submits "more" in the session "another chat" until it is taken
    Then the answer is 202
