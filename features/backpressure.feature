Feature: A bounded queue pushes back and keeps its order

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms

  @ORCHD-ADM-1 @ORCHD-HTTP-3
  Scenario: A full queue refuses and says when to come back
    Given its queue holds 1 task
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "waiting":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    And the answer is 202
    And the answer asks to hold back
    And alice submits "refused":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 429 ADMISSION_REJECT
    And the answer says:
      | retriable    | true     |
      | policy_label | reject   |
      | pool_id      | words    |
      | engine       | mock     |
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same
    When alice submits and streams "refused too":
      | prompt | Once upon a time |
    Then the answer is 429 ADMISSION_REJECT
    When alice cancels "running"
    And "waiting" is done
    And alice submits "taken":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the answer is 202

  @ORCHD-ADM-1
  Scenario: A full queue counts interactive and batch tasks together
    Given its queue holds 2 tasks
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "b1" of priority batch
    And alice submits "i1" of priority interactive
    And alice submits "b2" of priority batch
    Then the answer is 429 ADMISSION_REJECT
    When alice submits "i2" of priority interactive
    Then the answer is 429 ADMISSION_REJECT

  @ORCHD-ADM-1
  Scenario: drop-lru lets the batch task go that waited longest
    Given its queue holds 2 tasks with policy drop-lru
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "i1" of priority interactive
    And alice submits and streams "b1":
      | prompt   | Once upon a time |
      | priority | batch            |
    And alice submits "i2" of priority interactive
    Then the answer is 202
    And the stream "b1" ends with error QUEUE_FULL_DROP_LRU
    And the error event of "b1" says:
      | retriable | true |
    And "b1" is failed
    And "i1" is queued
    When alice submits "refused":
      | prompt   | Once upon a time |
      | priority | batch            |
    Then the answer is 429 QUEUE_FULL_DROP_LRU
    And the answer says:
      | retriable    | true     |
      | policy_label | drop-lru |
      | pool_id      | words    |
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same
    And the metrics are:
      | admission_backpressure_events_total{policy="drop-lru"} | 2 |

  @ORCHD-ADM-1
  Scenario: shed-low-priority keeps the last places for interactive tasks
    Given its queue holds 5 tasks with policy shed-low-priority
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "b1" of priority batch
    And alice submits "b2" of priority batch
    And alice submits "b3" of priority batch
    And alice submits "b4" of priority batch
    Then the answer is 202
    When alice submits "b5" of priority batch
    Then the answer is 429 ADMISSION_REJECT
    And the answer says:
      | policy_label | shed-low-priority |
    When alice submits "i1" of priority interactive
    Then the answer is 202
    When alice submits "i2" of priority interactive
    Then the answer is 429 ADMISSION_REJECT
    And the answer says:
      | policy_label | shed-low-priority |

  @ORCHD-ADM-2
  Scenario: Interactive goes before batch, and each in order of arrival
    Given the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "b1" of priority batch
    And alice submits "i1" of priority interactive
    And alice submits "b2" of priority batch
    And alice submits "i2" of priority interactive
    Then "i1" has the record:
      | queue_position | 0 |
    And "i2" has the record:
      | queue_position | 1 |
    And "b1" has the record:
      | queue_position | 2 |
    And "b2" has the record:
      | queue_position | 3 |
    When alice cancels "running"
    Then they started in the order "i1", "i2", "b1", "b2"

  @ORCHD-ADM-2
  Scenario: A batch task that waited too long gets every fourth start
    Given the setting "admission.batch_max_wait_ms" is 1
    And the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "aged" of priority batch
    And alice submits "i1" of priority interactive
    And alice submits "i2" of priority interactive
    And alice submits "i3" of priority interactive
    And alice submits "i4" of priority interactive
    And alice cancels "running"
    Then they started in the order "i1", "i2", "i3", "aged", "i4"

  @ORCHD-ADM-3
  Scenario: The promise reckons with what runs and waits
    Given the pool "words" is ready
    When alice submits "running":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And "running" is running
    And alice submits "next" of priority interactive
    Then the answer says:
      | queue_position | 0 |
    And the promised start is more than 5000 ms away
    When alice submits "one after":
      | prompt      | Once upon a time |
      | max_tokens  | 3                |
      | deadline_ms | 600000           |
    Then the answer says:
      | queue_position | 1 |
    And the deadline is likely met

  @ORCHD-HTTP-3 @ORCHD-AUTH-3
  Scenario: A key that asks too often is held back
    Given bob may send 0.5 requests a second and 2 at once
    When bob asks for "/v1/pools"
    And bob asks for "/v1/pools"
    And the answer is 200
    And bob asks for "/v1/pools"
    Then the answer is 429 RATE_LIMITED
    And the answer says:
      | policy_label | rate |
    And Retry-After is in whole seconds, rounded up, and X-Backoff-Ms says the same
    And the metrics are:
      | admission_backpressure_events_total{engine="none",policy="rate"} | 1 |
    When alice asks for "/v1/pools"
    Then the answer is 200

  @ORCHD-HTTP-3 @ORCHD-AUTH-3 @ORCHD-TASK-9
  Scenario: A key has a bounded number of open streams, and a refused one leaves no task behind
    Given the setting "limits.streams_per_key" is 1
    And the pool "words" is ready
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3000             |
    And alice watches "story" as "second viewer"
    Then the answer is 429 RATE_LIMITED
    And the answer says:
      | policy_label | streams |
    When alice submits and streams "another":
      | prompt     | Once upon a time |
    Then the answer is 429 RATE_LIMITED
    When alice asks for "/v1/tasks"
    Then the answer lists "story"
    When alice cancels "story"
    And the stream "story" ends with error CANCELED
    And alice watches "story" as "third viewer"
    Then the answer is 200
